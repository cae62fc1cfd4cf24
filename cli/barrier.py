"""``weightspace barrier``: the loss on the way between two networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import options
from weightspace.cli.progress import progress

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.connectivity import Curve

_PICTURES = (".png", ".svg", ".pdf")
_TABLES = (".csv", ".json")


@click.command("barrier")
@click.argument("a")
@click.argument("b")
@options.task()
@click.option("--matching", type=click.Choice(["weight-matching"]), help="Match B to A first, and show both ways.")
@click.option(
    "--points",
    type=click.IntRange(min=3),
    default=25,
    show_default=True,
    help="Positions on the way, ends included.",
)
@click.option(
    "--statistics",
    type=click.Choice(["auto", "none", "reset"]),
    default="auto",
    show_default=True,
    help="BatchNorm's statistics between the ends: measured anew, or interpolated.",
)
@click.option(
    "--baseline",
    type=click.Choice(["linear", "mean"]),
    default="linear",
    show_default=True,
    help="What the barrier rises above.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Data to score.",
)
@options.seed("Order of the groups in the matching.")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Picture (.png, .svg, .pdf) or table (.csv, .json); may be repeated.",
)
@options.as_json
def command(
    a: str,
    b: str,
    task: str,
    data: Path | None,
    matching: str | None,
    points: int,
    statistics: Any,
    baseline: Any,
    split: Any,
    seed: int,
    outputs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score the networks on the straight way from A to B: the barrier, a table, a picture.

    \b
    Examples:
      weightspace barrier a.safetensors b.safetensors --task digits-mlp
      weightspace barrier a.pt b.pt --task digits-mlp --matching weight-matching -o way.png -o way.csv
    """
    from weightspace import barrier, load_checkpoint, load_task, loss_curve, permute, weight_matching

    if bad := [path for path in outputs if Path(path).suffix.lower() not in _PICTURES + _TABLES]:
        raise WeightspaceError(
            f"{bad[0]} is neither a picture ({', '.join(_PICTURES)}) nor a table ({', '.join(_TABLES)})."
        )
    found = load_task(task, data=data)
    first, second = load_checkpoint(a), load_checkpoint(b)
    ends = {"naive" if matching else "linear": second}
    if matching:
        spec = options.spec_of(None, None, None, found)
        ends[matching] = permute(spec, weight_matching(spec, first, second, seed=seed).permutation, second)
    curves: dict[str, Curve] = {}
    for label, end in ends.items():
        with progress(f"{label} curve") as update:
            curves[label] = loss_curve(
                found,
                first,
                end,
                points,
                statistics=statistics,
                split=split,
                on_point=lambda at, show=update: show(at.index, at.points, f"{at.index}/{at.points}"),
            )
    for path in outputs:
        _write(curves, Path(path))
    figures = {
        label: {
            "positions": curve.positions,
            "loss": curve.loss,
            "accuracy": curve.accuracy,
            "barrier": barrier(curve, baseline=baseline),
            "accuracy_barrier": curve.accuracy and barrier(curve, baseline=baseline, score="accuracy"),
            "statistics": curve.statistics,
        }
        for label, curve in curves.items()
    }
    if as_json:
        *others, last = figures.items()
        click.echo(json.dumps(last[1] | dict(others)))
        return
    for label, values in figures.items():
        accuracy = values["accuracy_barrier"]
        share = "" if accuracy is None else f", {accuracy:.2%} of accuracy"
        click.echo(f"{label}: barrier {values['barrier']:.4f} nats{share}")
    for path in outputs:
        click.echo(path)


def _write(curves: dict[str, Curve], path: Path) -> None:
    """Draw all curves into a picture, or save them as tables (one file a curve where there are two)."""
    if path.suffix.lower() in _PICTURES:
        from weightspace.plots import draw_curves

        draw_curves(curves, path)
    elif len(curves) == 1:
        next(iter(curves.values())).save(path)
    else:
        for label, curve in curves.items():
            curve.save(path.with_name(f"{path.stem}-{label}{path.suffix}"))
