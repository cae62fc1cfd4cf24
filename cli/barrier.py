"""``weightspace barrier``: the loss along the linear path between networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, loss_paths, networks, options
from weightspace.cli.commands import Choice
from weightspace.cli.printing import echo, warn
from weightspace.cli.reports import echo_files, echo_report

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.tasks import Task


@commands.command("barrier")
@click.argument("a")
@click.argument("b")
@click.argument("others", nargs=-1, metavar="[C]...")
@options.task()
@options.network
@options.matching("Match the others to A first, and show the path as it is (naive) and after matching.")
@click.option(
    "--points",
    type=click.IntRange(min=3),
    default=25,
    show_default=True,
    help="Positions on the line between two networks, endpoints included.",
)
@click.option(
    "--statistics",
    type=Choice(["auto", "none", "reset", "repair"]),
    default="auto",
    show_default=True,
    help="Statistics of interpolated networks: recompute BatchNorm's (reset), match those of all hidden units to the "
    "endpoints' (repair), or keep the interpolated ones (none); auto resets if there is BatchNorm.",
)
@click.option(
    "--baseline",
    type=Choice(["linear", "mean"]),
    default="linear",
    show_default=True,
    help="Baseline of the barrier: linear interpolation of the endpoint losses, or their mean.",
)
@click.option(
    "--split",
    type=Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Data to score.",
)
@click.option("--taylor", is_flag=True, help="Also estimate the barrier from the two endpoints, by Taylor expansion.")
@click.option("--temperature", is_flag=True, help="Fit a temperature to the midpoint and show the calibrated loss too.")
@click.option("--plane", is_flag=True, help="Score the plane through three networks instead of the lines between them.")
@click.option(
    "--resolution",
    type=click.IntRange(min=2),
    default=25,
    show_default=True,
    help="Points along each axis of the plane.",
)
@options.device("Device that networks run on")
@options.dtype
@options.execution("Positions (of two networks) or pairs (of several) to score")
@options.seed("Seed of the matching.")
@options.output(
    "Picture (.png, .svg, .pdf) or table (.csv, .json); may be repeated. With --matching METHOD, a table is two files: "
    "-o m.csv writes m-naive.csv and m-METHOD.csv.",
    required=False,
    kind="file",
    several=True,
)
@options.as_json
def command(
    a: str,
    b: str,
    others: tuple[str, ...],
    task: str,
    data: Path | None,
    network: str | None,
    example_inputs: tuple[str, ...],
    matching: str | None,
    plane: bool,
    device: str,
    dtype: str | None,
    seed: int,
    outputs: tuple[str, ...],
    as_json: bool,
    **opts: Any,
) -> None:
    """Measure the loss barrier on the straight line from A to B, as a number, a table or a picture.

    With three or more networks, measure the barrier of every pair; with --plane, the plane through three.

    \b
    Examples:
      weightspace barrier a.safetensors b.safetensors --task digits-mlp
      weightspace barrier a.pt b.pt --task digits-mlp --matching weight-matching -o path.png -o path.csv
      weightspace barrier a.pt b.pt --task digits-cnn --statistics repair --taylor --temperature
      weightspace barrier a.pt b.pt c.pt --task digits-mlp --matching weight-matching -o barriers.pdf
      weightspace barrier a.pt b.pt c.pt --task digits-mlp --plane -o plane.pdf
    """
    paths = (a, b, *others)
    options.check_inputs(*paths)
    _check(paths, outputs, plane=plane, ends_only=opts["taylor"] or opts["temperature"])
    _check_effects(plane=plane, matching=matching)
    for path in outputs:
        options.check_apart(path, *paths, task, network)
    found = networks.load_placed(task, data, device=device, dtype=dtype, source=network, inputs=example_inputs)
    models = _models(paths, found, matching, seed)
    report = _measured(models, opts, plane=plane, several=bool(others))
    files = [file for path in outputs for file in report.write(Path(path))]
    if as_json:
        figures = {report.kind: report.figures}
        echo_report(figures, output=next(iter(outputs), None), files=files, task=models.task.name, split=opts["split"])
        return
    for line in report.lines:
        echo(line)
    echo_files(files)


def _check(paths: tuple[str, ...], outputs: tuple[str, ...], *, plane: bool, ends_only: bool) -> None:
    """Check that the options fit together, before anything is loaded."""
    pictures, tables = loss_paths.PICTURES, loss_paths.TABLES
    if bad := [path for path in outputs if Path(path).suffix.lower() not in pictures + tables]:
        raise WeightspaceError(
            f"{bad[0]} is neither an image ({', '.join(pictures)}) nor a table ({', '.join(tables)})."
        )
    if plane and len(paths) != 3:
        raise WeightspaceError(f"--plane takes three networks; found {len(paths)}.")
    if ends_only and (plane or len(paths) != 2):
        raise WeightspaceError(f"--taylor and --temperature take two networks; found {len(paths)}.")
    if len(set(paths)) != len(paths) > 2:
        raise WeightspaceError(f"Three or more networks must be distinct; found {', '.join(paths)}.")


def _check_effects(*, plane: bool, matching: str | None) -> None:
    """Refuse options that have no effect."""
    if plane:
        options.check_effect(("points", "baseline", "workers", "executor", "ray_address"), "with --plane")
    else:
        options.check_effect(["resolution"], "without --plane")
    if matching is None:
        options.check_effect(["seed"], "without --matching")


def _measured(models: loss_paths.Models, opts: dict[str, Any], *, plane: bool, several: bool) -> loss_paths.Report:
    """Measure the plane through three networks, the barriers between several, or the curve between two."""
    common = {name: opts[name] for name in ("statistics", "split")}
    if plane:
        return loss_paths.planes(models, resolution=opts["resolution"], **common)
    place = {name: opts[name] for name in ("executor", "workers", "ray_address")}
    common |= {"points": opts["points"], "baseline": opts["baseline"], "place": place}
    if several:
        return loss_paths.matrices(models, **common)
    return loss_paths.curves(models, taylor=opts["taylor"], temperature=opts["temperature"], **common)


def _models(paths: tuple[str, ...], found: Task, matching: str | None, seed: int) -> loss_paths.Models:
    """Return the task and the networks, labelled as given and as matched."""
    from weightspace import load_checkpoint
    from weightspace.tasks.building import blank_network, fitted

    states, network = [load_checkpoint(path) for path in paths], blank_network(found)
    for path, state in zip(paths, states, strict=True):
        fitted(found, network, state, path)
        _warn_of_non_finite(path, state)
    stems = tuple(Path(path).stem for path in paths)
    labelled = {"naive" if matching else "linear": states}
    if matching:
        spec = networks.spec_of(None, None, (), found, method=matching)
        labelled[matching] = networks.matched(matching, spec, states, seed, found)
    return loss_paths.Models(found, stems if len(set(stems)) == len(stems) else paths, labelled)


def _warn_of_non_finite(path: str, state: StateDict) -> None:
    """Warn of a network that diverged: its losses are NaN, and then the barrier is, but accuracies are numbers."""
    from weightspace.checkpoints.state_dict import check_finite
    from weightspace.errors import CheckpointError

    try:
        check_finite(state, path)
    except CheckpointError as error:
        warn(f"{error} Its scores, and the barrier, mean nothing.")
