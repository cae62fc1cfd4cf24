"""Header rows of tables: detected by their content and skipped with a warning, or given by an option."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.escaping import escaped

#: Usual headings of columns of names.
_WORDS = frozenset(
    [
        *(
            "child",
            "children",
            "parent",
            "parents",
            "source",
            "target",
            "from",
            "to",
            "u",
            "v",
            "node",
            "node1",
            "node2",
        ),
        *("name", "names", "label", "labels", "class", "classes", "category", "subclass", "superclass", "hyponym"),
        *(
            "hypernym",
            "head",
            "tail",
            "start",
            "end",
            "id",
            "parent_id",
            "child_id",
            "truth",
            "target_label",
            "observed",
        ),
    ]
)

#: Headings that the documentation names: skipped without a warning.
_DOCUMENTED = (("name", "parent"), ("child", "parent"), ("parent", "child"))

#: Those of the parent.
_PARENTS = frozenset(["parent", "parents", "parent_id", "superclass", "hypernym"])


def is_head_word(cell: str) -> bool:
    """Return whether a cell is a usual heading of a column of names."""
    return _word(cell) in _WORDS


def _word(cell: str) -> str:
    """Return a heading in the spelling of the lists above."""
    return cell.strip().lower().replace(" ", "_").replace("-", "_")


def is_number(cell: str) -> bool:
    """Return whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_header_of_pairs(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row of a table of edges is a header.

    It is one if no cell is empty or a name in another row, and either the third cell isn't a number although those
    below are, or the first two are usual headings.
    """
    if len(rows) < 2:
        return False
    first, *others = rows
    used = {"", *(cell.strip() for row in others for cell in row[:2])}
    if not used.isdisjoint(cell.strip() for cell in first):
        return False
    if len(first) == 3 and not is_number(first[2]):
        return all(len(row) < 3 or is_number(row[2]) for row in others)
    return len(first) >= 2 and all(is_head_word(cell) for cell in first[:2])


def names_the_parent_first(header: Sequence[str]) -> bool:
    """Return whether a header of pairs says that the first column is the parent of the second."""
    first, second = map(_word, header[:2])
    return first in _PARENTS and second not in _PARENTS and is_head_word(second)


def is_documented(header: Sequence[str]) -> bool:
    """Return whether the documentation names a header of pairs, so that skipping it needs no warning."""
    return tuple(map(_word, header[:2])) in _DOCUMENTED


def header_of_numbers(path: Path, delimiter: str) -> list[str] | None:
    """Return the names in the first line of a table of numbers, or None if that line holds numbers.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file isn't text, isn't a table, or its first line is neither numbers nor a header: a name has no
            letter or contains a control character, or the next line has another number of cells.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        first, second = (_cells(file.readline(), delimiter) for _ in range(2))
    if not any(first) or any(map(is_number, first)):  # a line of empty cells has no names
        return None
    for name in filter(None, first):
        if not (name.isprintable() and any(map(str.isalpha, name))):
            raise ValueError(f"line 1 is neither numbers nor names: found '{escaped(name[:60])}'; --header skips it")
    if second and len(second) != len(first):
        raise ValueError(f"lines 1 and 2 differ in their number of cells: {len(first)} and {len(second)}")
    return first


def _cells(line: str, delimiter: str) -> list[str]:
    """Return the cells of one line of a table."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def without_header(names: list[str], known: Collection[str], source: str | Path) -> list[str]:
    """Return a list of names without its first entry if that is a header and not a label."""
    if len(names) > 1 and is_head_word(names[0]) and names[0] not in known and names[1] in known:
        warn_skipped(source, names[0])
        return names[1:]
    return names


def warn_skipped(source: str | Path, line: str) -> None:
    """Warn that the first line was skipped."""
    shown = escaped(line[:60])
    warnings.warn(f"{source}: line 1 looks like a header ({shown}): skipped.", WeightspaceWarning, stacklevel=3)


def check_columns(header: Sequence[str] | None, observed: Sequence[object], source: str | Path) -> None:
    """Check that named columns are in the order of the observed classes.

    Raises:
        WeightspaceError: the same names are in a different order.
    """
    named = [str(label) for label in observed]
    if header is not None and list(header) != named and sorted(header) == sorted(named):
        raise WeightspaceError(
            f"{source}: the columns are {', '.join(header)[:80]}, but the observed classes are "
            f"{', '.join(named)[:80]}. Expected the same order: list --observed in the order of the columns."
        )
