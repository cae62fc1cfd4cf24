"""Files of curves, planes and matrices: ``.json`` holds the whole, ``.csv`` a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from weightspace.checkpoints.atomic_write import check_regular, replacing_file
from weightspace.checkpoints.json_file import parse_json
from weightspace.errors import WeightspaceError

Result = TypeVar("Result")


def save_result(path: str | Path, noun: str, fields: Mapping[str, Any], table: Callable[[], str]) -> None:
    """Write a result as ``.json`` or ``.csv``, as the suffix says.

    Args:
        path: of the file.
        noun: what the result is, for the error: ``curve``.
        fields: all of it, for ``.json``.
        table: returns all of it as the text of a ``.csv``.

    Raises:
        CheckpointError: the file cannot be written.
        WeightspaceError: the path has another suffix.
    """
    path = Path(path)
    text = table() if _suffix(path, noun) == ".csv" else json.dumps(fields, indent=2) + "\n"
    with replacing_file(path) as file:
        file.write(text.encode())


def load_result(
    path: str | Path,
    noun: str,
    expected: Sequence[str],
    from_fields: Callable[[Mapping[str, Any]], Result],
    from_rows: Callable[[list[dict[str, str]]], Result],
) -> Result:
    """Read a result that ``save_result`` wrote.

    Args:
        path: of the file.
        noun: what the result is.
        expected: names that the file has, for the error.
        from_fields: makes the result from the object of a ``.json``.
        from_rows: makes it from the rows of a ``.csv``, one or more.

    Raises:
        WeightspaceError: the file cannot be read, or holds something else.
    """
    path = Path(path)
    suffix = _suffix(path, noun)
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
        return from_rows(_rows(text)) if suffix == ".csv" else from_fields(parse_json(text, str(path)))
    except OSError as error:
        raise WeightspaceError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, csv.Error) as error:
        raise WeightspaceError(
            f"{path} isn't a {noun} ({error}); expected {', '.join(expected)} as its save method writes them."
        ) from error


def table_of(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return the text of a ``.csv`` with a line of columns and the rows; None is an empty cell."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return lines.getvalue()


def numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Return the values of a file as floats."""
    return tuple(float(value) for value in values)


def numbers_or_none(values: Sequence[Any] | None) -> tuple[float, ...] | None:
    """Return the values of a file as floats; None where there are none, or where the cells of a table are empty."""
    if values is None or all(value == "" for value in values):
        return None
    return numbers(values)


def _rows(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise ValueError("no rows")
    return rows


def _suffix(path: Path, noun: str) -> str:
    """Return the suffix that decides the format."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise WeightspaceError(f"A {noun} is a .csv or a .json file; found {path.name!r}.")
    return suffix
