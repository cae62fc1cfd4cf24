"""``weightspace inspect``: the contents of a checkpoint, or the differences of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from weightspace.cli import commands, options
from weightspace.cli.printing import echo, print_table
from weightspace.cli.reports import echo_report

if TYPE_CHECKING:
    from weightspace.checkpoints import CheckpointSummary, Comparison, TensorSummary


@commands.command("inspect")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--strip-prefix", metavar="PREFIX", help="Strip PREFIX (such as module.) from the tensor names.")
@click.option(
    "--key", metavar="NAME", help='Entry of the torch file or DCP folder that holds the tensors ("" is the top level).'
)
@options.as_json
def command(files: tuple[str, ...], strip_prefix: str | None, key: str | None, as_json: bool) -> None:
    """Show the tensors of checkpoints: shapes, dtypes, norms, parameter count, metadata.

    A FILE is a .safetensors or torch file, a Hugging Face folder, or a training checkpoint (DCP, ZeRO). Two FILEs are
    shown side by side, with their differences and the relative distance ‖a − b‖ / ‖a‖.

    \b
    Examples:
      weightspace inspect a.safetensors
      weightspace inspect a.safetensors b.pt --json
    """
    from weightspace.checkpoints import compare, summarise

    summaries = [summarise(file, strip_prefix=strip_prefix, key=key) for file in files]
    comparison = compare(*files, strip_prefix=strip_prefix, key=key) if len(files) == 2 else None
    if as_json:
        echo_report({"checkpoints": summaries, "comparison": comparison})
    elif comparison is not None:
        _show_two(summaries[0], summaries[1], comparison)
    else:
        for summary in summaries:
            _show_one(summary)


def _show_one(summary: CheckpointSummary) -> None:
    """Print one checkpoint."""
    rows = [
        (tensor.name, _shape(tensor.shape), tensor.dtype, _number(tensor.norm), _note(tensor))
        for tensor in summary.tensors
    ]
    print_table(("tensor", "shape", "dtype", "norm", ""), rows)
    _print_totals(summary)


def _show_two(a: CheckpointSummary, b: CheckpointSummary, comparison: Comparison) -> None:
    """Print two checkpoints side by side, then their differences."""
    left = {tensor.name: tensor for tensor in a.tensors}
    right = {tensor.name: tensor for tensor in b.tensors}
    relative = {tensor.name: tensor.relative for tensor in comparison.tensors}
    rows: list[tuple[str, ...]] = []
    for name in left | right:
        both = [side[name] for side in (left, right) if name in side]
        norms = [_number(side[name].norm) if name in side else "absent" for side in (left, right)]
        rows.append(
            (
                name,
                " | ".join(dict.fromkeys(_shape(tensor.shape) for tensor in both)),
                " | ".join(dict.fromkeys(tensor.dtype for tensor in both)),
                *norms,
                _number(relative.get(name)),
                "values differ" if name in comparison.unequal else _notes(left.get(name), right.get(name)),
            )
        )
    print_table(("tensor", "shape", "dtype", "norm a", "norm b", "relative distance", ""), rows)
    for letter, summary in (("a", a), ("b", b)):
        _print_totals(summary, f"{letter}: ")
    _print_differences(comparison)


def _print_totals(summary: CheckpointSummary, label: str = "") -> None:
    """Print the totals of a checkpoint, and its metadata."""
    bad = f", {summary.non_finite:,} NaN or infinite values" if summary.non_finite else ""
    quantised = "" if summary.quantised is None else f", quantised: {summary.quantised}"
    echo(
        f"{label}{summary.path}: {len(summary.tensors):,} tensors, {summary.parameters:,} parameters, "
        f"{summary.bytes:,} bytes, norm {_number(summary.norm)}{bad}{quantised}"
    )
    for name, value in summary.metadata.items():
        _print_metadata(name, value)


def _print_metadata(name: str, value: str) -> None:
    """Print a metadata entry: on one line, or below its name if it has several lines."""
    lines = _digests(value) if name == "inputs" else value.splitlines()
    if len(lines) < 2:
        echo(f"  {name}: {value}")
        return
    echo(f"  {name}:")
    for line in lines:
        echo(f"    {line}")


def _digests(value: str) -> list[str]:
    """Return a line for each input named in the provenance; none if it has another format."""
    from weightspace.checkpoints.json_file import parse_json
    from weightspace.errors import WeightspaceError

    try:
        entries = parse_json(value, "inputs")
        return [f"{entry['name']}  sha256 {entry['sha256'] or 'not recorded'}" for entry in entries]
    except (WeightspaceError, TypeError, KeyError):
        return []


def _print_differences(comparison: Comparison) -> None:
    """Print differing names, shapes, dtypes and values, then the distance."""
    kinds = {
        "only in a": comparison.only_a,
        "only in b": comparison.only_b,
        "different shape": [difference.name for difference in comparison.shapes],
        "different dtype": [difference.name for difference in comparison.dtypes],
        "different integers": comparison.unequal,
    }
    for kind, names in kinds.items():
        if names:
            echo(f"{kind}: {len(names):,} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})")
    if not comparison.tensors:
        echo("no distance: the two have no float tensor of the same name and shape")
        return
    echo(
        f"relative distance {_number(comparison.relative)} "
        f"(‖a − b‖ = {_number(comparison.distance)}, ‖a‖ = {_number(comparison.norm)}, "
        f"{len(comparison.tensors):,} float tensors)"
    )


def _note(tensor: TensorSummary) -> str:
    """Return a note on a tensor that is tied or not finite."""
    if tensor.tied_to is not None:
        return f"tied to {tensor.tied_to}"
    return f"{tensor.non_finite:,} NaN or infinite" if tensor.non_finite else ""


def _notes(a: TensorSummary | None, b: TensorSummary | None) -> str:
    """Return a note on a tensor of two checkpoints, and which of them it applies to."""
    notes = ["" if tensor is None else _note(tensor) for tensor in (a, b)]
    if notes[0] == notes[1]:
        return notes[0]
    return ", ".join(f"{note} in {letter}" for letter, note in zip("ab", notes, strict=True) if note)


def _shape(shape: tuple[int, ...]) -> str:
    """Format a shape as ``64×3×7×7``."""
    return "×".join(map(str, shape)) or "scalar"


def _number(value: float | None) -> str:
    """Format a number with six digits, None as ``-``."""
    return "-" if value is None else f"{value:.6g}"
