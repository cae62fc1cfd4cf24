"""Weight matching connects two networks, and not by the distance: it aligns the vectors of large singular values.

Between networks from two seeds, before and after weight matching: the barrier of the test loss, the distance, what the
second-order Taylor expansion makes of the barrier, the alignment R of the singular vectors, and how much of the energy
of hidden inputs lies on the leading right ones.

    python analyses/weight_matching.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pairs import measure
from recipe import digits_task, label_of, trained
from report import Gate, Row, script

import weightspace as ws
from weightspace.plots import draw_alignment, draw_curves, draw_heat_maps, draw_spectra
from weightspace.spectra import alignments, cross_products, input_energy
from weightspace.tasks import ClassificationTask

TASK = digits_task()
GATES = (
    Gate("Weight matching connects", "matched / naive", "≤", 0.05),
    Gate("… but hardly shortens the distance", "L2 reduction", "<", 0.35),
    Gate("Taylor's expansion cannot explain it", "Taylor error", ">", 0.5),
    Gate("Unmatched networks share no singular vectors", "R_.3 before", "<", 0.1),
    Gate("Matched ones share those of large values", "R_.3", ">", 0.3),
    Gate("… the more, the larger: R_.3 above R_0", "R_.3 − R_0", ">", 0.0),
    Gate("… and R_.7 above R_.3", "R_.7 − R_.3", ">", 0.0),
    Gate("Hidden inputs live on the leading right vectors", "input energy", "≥", 3.0),
)


def rows(pairs: Sequence[range], cache: Path, *, task: ClassificationTask = TASK) -> Iterator[tuple[str, Row]]:
    """Measure pairs of networks of these seeds."""
    for seeds in pairs:
        a, b = (trained(task, seed, cache=cache) for seed in seeds)
        yield label_of(seeds), {**measure(task, a, b), **explanations(task, a, permuted(task, a, b))}


def permuted(task: ClassificationTask, a: ws.StateDict, b: ws.StateDict) -> ws.StateDict:
    """Return ``b`` with its units in the order of those of ``a``, by weight matching."""
    spec = ws.derive_spec(task.network(), task.example_args)
    return ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)


def explanations(task: ClassificationTask, a: ws.StateDict, matched: ws.StateDict) -> Row:
    """Return what might explain why the loss along the path between two matched networks is flat."""
    cut = {gamma: ws.singular_alignment(a, matched, gamma).total for gamma in (0.0, 0.3, 0.7)}
    return {
        "Taylor error": taylor_error(task, a, matched),
        "R_.3 − R_0": cut[0.3] - cut[0.0],
        "R_.7 − R_.3": cut[0.7] - cut[0.3],
        "input energy": least_input_energy(task, a),
    }


def taylor_error(task: ClassificationTask, a: ws.StateDict, b: ws.StateDict) -> float:
    """Return how far the Taylor estimate is from the barrier of the training loss, relative to that barrier."""
    found = ws.barrier(ws.loss_curve(task, a, b, split="train"))
    return abs(ws.taylor_barrier(task, a, b, split="train") - found) / abs(found)


def least_input_energy(task: ClassificationTask, state: ws.StateDict) -> float:
    """Return share of energy / share of directions on the right vectors down to .3 σ_max, in the layer that has least.

    Of the layers that are fed hidden units; the images that the first one sees are not what is claimed about.
    """
    energies = input_energy(ws.spectrum(state, gamma=0.3), ws.collect_evidence(task, state, "gram"))
    return min(energy.ratio for layer, energy in energies.items() if layer != "hidden1.weight")


def draw(seeds: range, cache: Path, folder: Path) -> None:
    """Draw a pair: the loss along the linear path, R against γ, the vectors' products, the values."""
    a, b = (trained(TASK, seed, cache=cache) for seed in seeds)
    ends = {"unmatched": b, "weight matching": permuted(TASK, a, b)}
    curves = {label: ws.loss_curve(TASK, a, end) for label, end in ends.items()}
    draw_curves(curves, folder / "weight_matching_way.png", title=f"{TASK.name}, seeds {label_of(seeds)}")
    spectra = {label: ws.spectrum(state) for label, state in {"target": a, **ends}.items()}
    first = spectra.pop("target")
    gammas = [step / 20 for step in range(21)]
    draw_alignment(
        {label: alignments(first, other, gammas) for label, other in spectra.items()},
        folder / "weight_matching_alignment.png",
    )
    maps = {
        layer: {label: cross_products(one, other.layers[layer]) for label, other in spectra.items()}
        for layer, one in first.layers.items()
    }
    draw_heat_maps(maps, folder / "weight_matching_vectors.png")
    values = {f"seed {seeds[0]}": first, f"seed {seeds[1]}": spectra["unmatched"]}
    draw_spectra(values, folder / "weight_matching_values.png", gamma=0.3)


if __name__ == "__main__":
    script("weight_matching", __doc__, task=TASK, rows=rows, gates=GATES, draw=draw, pairs=25)()
