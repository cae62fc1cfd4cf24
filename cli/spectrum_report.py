"""Tables and plots of ``weightspace spectrum``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from weightspace.cli.options import check_writable
from weightspace.cli.printing import echo, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.spectra import SpectralDistance, SpectralDistances, Spectrum

#: Maximum layers in a plot: evenly spaced, including the first and the last.
_MOST_MAPS, _MOST_PANELS = 4, 8
#: Comparisons with networks merged from A, which are close to A whether or not the parents are aligned.
_MERGED = ("merged", "unaligned mean")
_CURVE = [step / 50 for step in range(51)]
_Value = TypeVar("_Value")


@dataclass
class Found:
    """The spectra to report.

    Attributes:
        paths: ``a``, ``b`` and ``merged`` -> the checkpoint.
        gammas: thresholds of counted singular values; the table uses the first.
        a: the spectrum of A.
        others: comparison -> the spectrum of the network that A is compared with: ``unaligned`` (B as is), a
            matching, ``merged``, ``unaligned mean``.
        grams: tensor -> Gram matrix of A's inputs, or None.
        task: name of the task, or None.
    """

    paths: dict[str, str]
    gammas: tuple[float, ...]
    a: Spectrum
    others: dict[str, Spectrum] = field(default_factory=dict)
    grams: dict[str, Tensor] | None = None
    task: str | None = None

    def networks(self) -> dict[str, Spectrum]:
        """Return A and, if given, B, unaligned."""
        return {"a": self.a} | ({"b": self.others["unaligned"]} if self.others else {})


def as_object(found: Found) -> dict[str, Any]:
    """Return all figures as one JSON object."""
    from weightspace.spectra import alignments, input_energy, midpoint_change, spectral_distances

    content: dict[str, Any] = {
        "gammas": found.gammas,
        "networks": {label: _network(one, found, found.paths[label]) for label, one in found.networks().items()},
        "alignment": {label: alignments(found.a, other, found.gammas) for label, other in found.others.items()},
        "distance": {label: _distances(spectral_distances(found.a, other)) for label, other in found.others.items()},
    }
    if found.grams is not None:
        grams = found.grams
        energies = {gamma: input_energy(found.a, grams, gamma=gamma) for gamma in found.gammas}
        content["inputs"] = {
            name: [{"gamma": gamma, **_with(one[name], "ratio")} for gamma, one in energies.items()]
            for name in energies[found.gammas[0]]
        }
        content["midpoint_change"] = {
            label: midpoint_change(found.a, other, grams) for label, other in found.others.items()
        }
    return content


def _network(one: Spectrum, found: Found, path: str) -> dict[str, Any]:
    """Return the figures of one network."""
    layers = {
        name: {
            "shape": list(layer.matrix.shape),
            "kept": [layer.kept(gamma) for gamma in found.gammas],
            "effective_rank": layer.effective_rank,
            "values": layer.values.tolist(),
        }
        for name, layer in one.layers.items()
    }
    return {"path": path, "layers": layers}


def _distances(distances: SpectralDistances) -> dict[str, Any]:
    """Return the distances of two networks with derived figures."""
    derived = ("relative", "gap", "direction")
    per_layer = {name: _with(one, *derived) for name, one in distances.per_layer.items()}
    return {"total": _with(distances.total, *derived), "per_layer": per_layer}


def _with(record: Any, *properties: str) -> dict[str, Any]:
    """Return a dataclass as a dict, with some of its properties."""
    return asdict(record) | {name: getattr(record, name) for name in properties}


def show(found: Found) -> None:
    """Print the tables of a report."""
    if found.others:
        _show_distances(found)
        echo()
        _show_alignments(found)
    else:
        _show_one(found)
    if found.grams is not None:
        echo()
        _show_inputs(found, found.grams)


def _show_one(found: Found) -> None:
    """Print one network's layers."""
    head = ("layer", "shape", "largest", "smallest", *map(_count, found.gammas), "effective rank")
    rows = [
        (
            name,
            _shape(layer.matrix),
            f"{float(layer.values[0]):.4g}",
            f"{float(layer.values[-1]):.4g}",
            *(f"{layer.kept(gamma):,}" for gamma in found.gammas),
            f"{layer.effective_rank:.1f} of {len(layer.values):,}",
        )
        for name, layer in found.a.layers.items()
    ]
    print_table(head, rows)


def _show_distances(found: Found) -> None:
    """Print two networks' layers side by side with their distances."""
    from weightspace.spectra import spectral_distances

    gamma, b = found.gammas[0], found.others["unaligned"]
    compared = {label: other for label, other in found.others.items() if label not in _MERGED}
    distances = {label: spectral_distances(found.a, other) for label, other in compared.items()}
    last = list(distances.values())[-1]

    def figures(per_label: list[SpectralDistance], direction: float) -> tuple[str, ...]:
        relative = (_number(one.relative, ".3f") for one in per_label)
        return (_number(per_label[0].gap, ".2g"), *relative, _number(direction, ".2%"))

    rows = [
        (
            *(name, _shape(one.matrix), f"{one.kept(gamma):,} | {b.layer(name).kept(gamma):,}"),
            f"{one.effective_rank:.1f} | {b.layer(name).effective_rank:.1f}",
            *figures([each.per_layer[name] for each in distances.values()], last.per_layer[name].direction),
        )
        for name, one in found.a.layers.items()
    ]
    rows.append(("all", "", "", "", *figures([each.total for each in distances.values()], last.total.direction)))
    opts = (f"distance, {label}" for label in distances)
    print_table(("layer", "shape", _count(gamma), "effective rank", "gap", *opts, "direction"), rows)


def _show_alignments(found: Found) -> None:
    """Print R of A and each network, per layer at the first gamma and in total at all; warn of near-ties."""
    from weightspace.spectra import alignments

    curves = {label: alignments(found.a, other, found.gammas) for label, other in found.others.items()}
    rows = [(name, *(_number(curve[0].per_layer[name], ".3f") for curve in curves.values())) for name in found.a.layers]
    for index, gamma in enumerate(found.gammas):
        rows.append((f"all, {_count(gamma)}", *(_number(curve[index].total, ".3f") for curve in curves.values())))
    print_table((f"R, {_count(found.gammas[0])}", *curves), rows)
    for label, curve in curves.items():
        for one in curve:
            if one.near_degenerate:
                echo(
                    f"Warning: {label}, {_count(one.gamma)}: the last counted singular value nearly equals the next in "
                    f"{', '.join(one.near_degenerate)}; R is sensitive to rounding there.",
                    err=True,
                )


def _show_inputs(found: Found, grams: dict[str, Tensor]) -> None:
    """Print the input energy of A's layers, and the change of the outputs at the midpoint."""
    from weightspace.spectra import input_energy, midpoint_change

    gamma = found.gammas[0]
    energies = input_energy(found.a, grams, gamma=gamma)
    changes = {
        label: midpoint_change(found.a, other, grams) for label, other in found.others.items() if label not in _MERGED
    }
    rows = [
        (
            *(name, _number(one.share, ".1%"), _number(one.directions, ".1%"), _number(one.ratio, ".1f")),
            *(_number(change[name], ".3f") for change in changes.values()),
        )
        for name, one in energies.items()
    ]
    opts = (f"output change at midpoint, {label}" for label in changes)
    print_table((f"inputs, {_count(gamma)}", "energy", "directions", "ratio", *opts), rows)


def draw(found: Found, path: Path) -> list[str]:
    """Plot the values of one network, or the alignment, vectors and values of two; return the files."""
    from weightspace.plots import draw_alignment, draw_heat_maps, draw_spectra
    from weightspace.spectra import Spectrum, alignments, cross_products

    shown = _evenly(list(found.a.layers), _MOST_PANELS)
    networks = {
        label.upper(): Spectrum(one.gamma, {name: one.layer(name) for name in shown})
        for label, one in found.networks().items()
    }
    if not found.others:
        draw_spectra(networks, path, gamma=found.gammas[0])
        return [str(path)]
    files = {kind: path.with_name(f"{path.stem}-{kind}{path.suffix}") for kind in ("alignment", "vectors", "values")}
    for file in files.values():
        check_writable(file, "file")
    curves = {
        f"A and {label}" if label in _MERGED else f"A and B, {label}": alignments(found.a, one, _CURVE)
        for label, one in found.others.items()
    }
    draw_alignment(curves, files["alignment"])
    maps = {
        name: {
            label: cross_products(found.a.layers[name], one.layer(name))
            for label, one in found.others.items()
            if label not in _MERGED
        }
        for name in _evenly(list(found.a.layers), _MOST_MAPS)
    }
    draw_heat_maps(maps, files["vectors"])
    draw_spectra(networks, files["values"], gamma=found.gammas[0])
    return [str(file) for file in files.values()]


def _evenly(items: list[_Value], most: int) -> list[_Value]:
    """Return evenly spaced items including the first and the last, or all if there are few."""
    if len(items) <= most:
        return items
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _count(gamma: float) -> str:
    """Format the threshold of counted singular values."""
    return f"σ ≥ {gamma:g} max"


def _shape(matrix: Tensor) -> str:
    return "×".join(map(str, matrix.shape))


def _number(value: float, form: str) -> str:
    """Format a number, NaN as ``-``."""
    return "-" if math.isnan(value) else format(value, form)
