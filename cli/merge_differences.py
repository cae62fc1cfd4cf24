"""``merge --report``: differences between the sources, as table, CSV, JSON and picture, before the merge."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cli import options
from weightspace.cli.printing import echo, plain, print_table
from weightspace.cli.progress import progress

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.merging import Differences, SourceDifferences

#: Forms of a report other than a picture; ``-`` is the table alone.
_TABLE, _DATA = "-", (".json", ".csv")


def check_reports(reports: Sequence[str], sources: Sequence[str], opts: Mapping[str, Any]) -> None:
    """Check the names of reports, that they replace no source, and that the options beside them fit.

    Raises:
        WeightspaceError: a name has another ending, or the networks are aligned first.
    """
    if not reports:
        options.check_effect(["report_threshold"], "without --report")
        return
    if opts["align"] is not None:
        raise WeightspaceError("--report compares the networks as they are, and --align changes them. Leave one out.")
    for name in reports:
        if name != _TABLE and Path(name).suffix.lower() not in _DATA:
            from weightspace.plots.picture import picture_format

            picture_format(Path(name))
        if name != _TABLE:
            options.check_writable(name, "file")
            options.check_apart(name, *sources, opts["base"])


def report_differences(
    sources: str | Sequence[str], reports: Sequence[str], threshold: float, given: Mapping[str, Any], *, shown: bool
) -> tuple[SourceDifferences, list[str]]:
    """Measure how the sources of a merge differ, write and print that, and return it with the files.

    Args:
        sources: a recipe, or checkpoints.
        reports: files to write; ``-`` is none.
        threshold: share of a tensor's root mean square above which a difference counts.
        given: the other arguments of ``source_differences``.
        shown: print the table.
    """
    from weightspace.merging import source_differences

    with progress("comparing sources") as update:
        found = source_differences(
            sources,
            threshold=threshold,
            on_progress=lambda event: update(event.index, event.total, f"{event.index:,} of {event.total:,} tensors"),
            **given,
        )
    files = [name for name in dict.fromkeys(reports) if name != _TABLE]
    for name in files:
        _write(found, Path(name))
    if shown:
        echo(f"differences from {found.reference}, changed by more than {threshold:g} of its root mean square")
        print_table(*_table(found))
        echo()
    return found, files


def _write(found: SourceDifferences, path: Path) -> None:
    """Write a report in the format that its name says."""
    from weightspace.checkpoints.atomic_write import replacing_file

    suffix = path.suffix.lower()
    if suffix not in _DATA:
        from weightspace.plots import draw_differences

        draw_differences(found, path)
        return
    text = json.dumps(plain(asdict(found)), ensure_ascii=False) + "\n" if suffix == ".json" else _csv(found)
    with replacing_file(path) as file:
        file.write(text.encode())


def _table(found: SourceDifferences) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of layers, all tensors together in the last row."""
    several = len(found.models) > 1
    head = [
        "layer",
        *(f"‖Δ‖/‖reference‖ {name}" for name in found.models),
        *(f"changed {name}" for name in found.models),
    ]
    head += ["cosine", "sign conflicts"] if several else []
    return head, [_cells(row, several=several) for row in (*found.layers, found.total)]


def _cells(row: Differences, *, several: bool) -> list[str]:
    norms = ["–" if value is None else f"{value:.4g}" for value in row.relative]
    cosine = "–" if row.mean_cosine is None else f"{row.mean_cosine:.4f}"
    cells = [row.name, *norms, *map(_share, row.above)]
    return [*cells, cosine, _share(row.conflicts)] if several else cells


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _csv(found: SourceDifferences) -> str:
    """Return a row per layer and per tensor."""
    models = range(len(found.models))
    pairs = [(first, second) for first in models for second in models if first < second]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    columns = [f"{kind} {name}" for kind in ("norm", "relative", "above") for name in found.models]
    cosines = [f"cosine {found.models[first]} {found.models[second]}" for first, second in pairs]
    writer.writerow(["kind", "name", "elements", *columns, *cosines, "sign_conflicts"])
    for kind, rows in (("layer", found.layers), ("tensor", found.tensors), ("total", (found.total,))):
        for row in rows:
            values = [*row.norms, *row.relative, *row.above, *(row.cosines[i][j] for i, j in pairs), row.conflicts]
            writer.writerow([kind, row.name, row.elements, *("" if value is None else value for value in values)])
    return lines.getvalue()
