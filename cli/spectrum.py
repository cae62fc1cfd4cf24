"""``weightspace spectrum``: the singular values of a network, and the alignment of two networks' singular vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report
from weightspace.cli.spectrum_report import Found, as_object, draw, show

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.spectra import Spectrum


#: Value of ``--against`` that isn't a checkpoint.
_MEAN = "merged"


@commands.command("spectrum")
@click.argument("a")
@click.argument("b", required=False)
@options.spec_source
@options.task(required=False)
@options.matching("Also match B to A, and show both.")
@click.option(
    "--against",
    metavar="MERGED",
    help="Also compare A with the checkpoint MERGED, and with the unaligned mean of A and B. The word `merged` stands "
    "for the mean of A and the matched B.",
)
@click.option("--inputs", is_flag=True, help="Show the energy of A's inputs on its leading right vectors, on --task.")
@click.option(
    "--gamma",
    "gammas",
    type=click.FloatRange(0, 1),
    multiple=True,
    default=(0.3,),
    show_default=True,
    help="Threshold of counted singular values, as a fraction of the largest; may be repeated.",
)
@click.option(
    "--names", metavar="NAME,…", help="Names or patterns of tensors, instead of all linear and convolutional layers."
)
@options.device("Device to decompose matrices and run networks on")
@options.seed("Seed of the matching.")
@options.output(
    "Plot (.png, .svg, .pdf); for two networks, OUT-alignment, OUT-vectors and OUT-values.",
    required=False,
    kind="file",
)
@options.as_json
def command(a: str, b: str | None, gammas: tuple[float, ...], output: str | None, as_json: bool, **opts: Any) -> None:
    """Show the singular values of A and, given B, the alignment R of the two networks' singular vectors (-1 to 1).

    R is taken over the singular vectors whose values are at least gamma times the largest; 0 is chance, 1 agreement.
    The distance is relative, 1 for unrelated networks; the gap is the part of it that no matching can change, and
    direction the share of the rest. The unaligned networks are always shown for comparison: a merged network is close
    to its parents even without alignment.

    \b
    Examples:
      weightspace spectrum a.safetensors
      weightspace spectrum a.safetensors b.safetensors --gamma .3 --gamma .7
      weightspace spectrum a.safetensors b.safetensors --matching weight-matching --task digits-mlp -o ab.png
      weightspace spectrum a.safetensors b.safetensors --matching weight-matching --task digits-mlp --against merged
    """
    _check(b, opts)
    options.check_inputs(a, b, None if _is_mean(opts["against"]) else opts["against"], opts["spec_file"])
    options.check_apart(output, a, b, opts["against"], opts["task"], opts["network"], opts["spec_file"])
    if output is not None:
        from weightspace.plots.picture import picture_format

        picture_format(Path(output))
    found = _found(a, b, tuple(dict.fromkeys(gammas)), output is not None, opts)
    pictures = draw(found, Path(output)) if output is not None else []
    if as_json:
        echo_report(as_object(found), output=output, files=pictures, task=found.task)
        return
    show(found)
    echo_files(pictures)


def _check(b: str | None, opts: dict[str, Any]) -> None:
    """Raise if options lack others that they need, or have no effect."""
    for option in ("matching", "against"):
        if b is None and opts[option] is not None:
            raise WeightspaceError(f"--{option} compares two networks. Give A and B.")
    if _is_mean(opts["against"]) and opts["matching"] is None:
        raise WeightspaceError(f"--against {_MEAN} is the mean of A and B matched. Give --matching, or a checkpoint.")
    if opts["inputs"] and opts["task"] is None:
        raise WeightspaceError("--inputs runs A on data. Give a task: --task digits-mlp, or file.py:object.")
    serves = {"--network": opts["network"], "--spec": opts["spec_file"], "--input": opts["example_inputs"]}
    if not opts["inputs"]:
        serves["--task"] = opts["task"]
    if opts["matching"] is None and (idle := [option for option, value in serves.items() if value]):
        raise WeightspaceError(f"{idle[0]} describes the network to match. Give --matching too, or leave it out.")
    if opts["matching"] is None:
        options.check_effect(["seed"], "without --matching")
    if opts["task"] is None:
        options.check_effect(["data"], "without --task")


def _is_mean(against: str | None) -> bool:
    """Return whether ``--against`` means the mean of A and B; a checkpoint of that name takes precedence."""
    return against == _MEAN and not Path(_MEAN).exists()


def _found(a: str, b: str | None, gammas: tuple[float, ...], drawn: bool, opts: dict[str, Any]) -> Found:
    """Load, match and decompose the networks."""
    import torch

    from weightspace import SymmetrySpec, interpolate, load_checkpoint, spectrum
    from weightspace.checkpoints import check_compatible
    from weightspace.devices import check_device
    from weightspace.symmetry import canonicalise

    place = {"device": opts["device"], "source": opts["network"], "inputs": opts["example_inputs"]}
    task = networks.load_any_task(opts["task"], opts["data"], **place)
    check_device(opts["device"], torch.float64)
    names = None if opts["names"] is None else opts["names"].split(",")
    given = {"a": a, "b": b, "merged": None if _is_mean(opts["against"]) else opts["against"]}
    paths = {label: path for label, path in given.items() if path is not None}
    states = {label: load_checkpoint(path) for label, path in paths.items()}
    for label, path in paths.items():
        check_compatible(states["a"], states[label], names=(a, path))
    spec = None
    if opts["matching"]:
        place = (opts["spec_file"], opts["network"], opts["example_inputs"])
        spec = networks.spec_of(*place, task, method=opts["matching"])
        if isinstance(spec, SymmetrySpec):  # distances and vectors compare canonical weights
            states |= {label: canonicalise(spec, states[label]) for label in ("a", "b")}
    least = 0.0 if drawn and b is not None else min(gammas)

    def decomposed(label: str, state: StateDict) -> Spectrum:
        with progress(f"singular values of {label}") as update:
            return spectrum(
                state,
                gamma=least,
                names=names,
                spec=spec,
                label=label,
                device=opts["device"],
                on_progress=lambda at: update(at.index, at.total, f"{at.index:,} of {at.total:,} matrices"),
            )

    found = Found(paths, gammas, decomposed(a, states["a"]), task=networks.name_of(task))
    matched = None
    if spec is not None:
        matched = networks.matched(opts["matching"], spec, [states["a"], states["b"]], opts["seed"], task)[1]
        if _is_mean(opts["against"]):
            states["merged"] = interpolate(states["a"], matched, 0.5)
            paths["merged"] = f"the mean of {a} and the matched {b}"
    for label, (said_as, state) in _others(states, paths, opts["matching"], matched).items():
        found.others[label] = decomposed(said_as, state)
    if opts["inputs"] and task is not None:
        from weightspace import collect_evidence

        with progress("inputs"):
            found.grams = collect_evidence(task, states["a"], "gram", seed=opts["seed"], device=opts["device"])
    return found


def _others(
    states: dict[str, StateDict], paths: dict[str, str], matching: str | None, matched: StateDict | None
) -> dict[str, tuple[str, StateDict]]:
    """Return the networks to compare A with: comparison -> name for progress and errors, and weights."""
    from weightspace import interpolate

    if "b" not in states:
        return {}
    a, b = states["a"], states["b"]
    others = {"unaligned": (paths["b"], b)}
    if matching is not None and matched is not None:
        others[matching] = (f"{paths['b']} matched", matched)
    if "merged" in states:
        others["merged"] = (paths["merged"], states["merged"])
        others["unaligned mean"] = ("the unaligned mean", interpolate(a, b, 0.5))
    return others
