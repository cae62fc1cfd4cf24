"""Files of curves, planes and matrices: ``.json`` with everything, or ``.csv`` as a table."""

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
    """Write a result as ``.json`` or ``.csv``, depending on the suffix.

    Args:
        path: path of the file.
        noun: name of the kind of result for errors, such as ``curve``.
        fields: all fields, for ``.json``.
        table: returns the text of the ``.csv``.

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
    """Read a result written by ``save_result``.

    Args:
        path: path of the file.
        noun: name of the kind of result.
        expected: names that the file must have, for the error.
        from_fields: makes the result from the object of a ``.json``.
        from_rows: makes the result from the rows of a ``.csv``, at least one.

    Raises:
        WeightspaceError: the file can't be read, or has other contents.
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
            f"{path} isn't a {noun} ({error}); expected {', '.join(expected)}, as written by its save method."
        ) from error


def table_of(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return the text of a ``.csv`` with a header line and rows; None gives an empty cell."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return lines.getvalue()


def numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Convert the values of a file to floats."""
    return tuple(float(value) for value in values)


def numbers_or_none(values: Sequence[Any] | None) -> tuple[float, ...] | None:
    """Convert the values of a file to floats; None for a missing list or empty cells."""
    if values is None or all(value == "" for value in values):
        return None
    return numbers(values)


def _rows(text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise ValueError("no rows")
    return rows


def _suffix(path: Path, noun: str) -> str:
    """Return the suffix, which determines the format."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise WeightspaceError(f"A {noun} is a .csv or a .json file; found {path.name!r}.")
    return suffix
