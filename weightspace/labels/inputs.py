"""Inputs of the label commands from files: arrays, lists of names, edges and parents."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.checkpoints.atomic_write import check_regular
from weightspace.checkpoints.json_file import parse_json
from weightspace.errors import WeightspaceError
from weightspace.labels.array_file import read_npy, read_npz
from weightspace.labels.headers import header_of_numbers, is_header_of_pairs, warn_skipped, without_header
from weightspace.suggestions import unknown

ARRAYS = (".npy", ".npz", ".safetensors", ".csv", ".tsv")


def read_array(path: str | Path, key: str | None = None, *, header: bool | None = None) -> Any:
    """Return the array of a ``.npy``, ``.npz``, ``.safetensors``, ``.csv`` or ``.tsv`` file; nothing is unpickled.

    Args:
        path: of the file.
        key: which array, where the file has several.
        header: whether the first line of a table is one; by default where it has no numbers, with a warning.

    Raises:
        WeightspaceError: the file cannot be read, has another suffix, or does not say which array is meant.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ARRAYS:
        raise WeightspaceError(f"An array is a {', '.join(ARRAYS)} file; found {path.name!r}.")
    try:
        check_regular(path)
        if suffix == ".safetensors":
            from weightspace.checkpoints import load_checkpoint

            return _chosen(dict(load_checkpoint(path)), key, path)
        if suffix in (".csv", ".tsv"):
            return _matrix(path, _delimiter(path), header)
        if suffix == ".npy":
            return read_npy(path)
        return _chosen(read_npz(path), key, path)
    except OSError as error:
        raise WeightspaceError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError) as error:
        raise WeightspaceError(f"{path} isn't a {suffix} file of numbers: {str(error).rstrip('.')}.") from error


def read_header(path: str | Path) -> list[str] | None:
    """Return the names of the columns of a table of numbers, None where it has none, or the file is no table.

    Raises:
        WeightspaceError: the file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv"):
        return None
    try:
        check_regular(path)
        return header_of_numbers(path, _delimiter(path))
    except (OSError, ValueError) as error:
        raise WeightspaceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _matrix(path: Path, delimiter: str, header: bool | None) -> Any:
    """Return the numbers of a table, one row or more."""
    if header is None and (found := header_of_numbers(path, delimiter)) is not None:
        warn_skipped(path, delimiter.join(found))
        header = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy's about a table without numbers, which is refused
        matrix = np.loadtxt(path, delimiter=delimiter, ndmin=2, encoding="utf-8-sig", skiprows=int(bool(header)))
    if not matrix.size:
        raise ValueError("it has no rows")
    return matrix


def _chosen(arrays: Mapping[str, Any], key: str | None, path: Path) -> Any:
    if key is not None:
        if key not in arrays:
            raise unknown(f"array of {path.name}", key, arrays)
        return arrays[key]
    if len(arrays) != 1:
        raise WeightspaceError(f"{path} has {len(arrays)} arrays ({', '.join(sorted(arrays))}); say which with --key.")
    return arrays[next(iter(arrays))]


def read_names(source: str | Path) -> list[str]:
    """Return names from a ``.json`` list or a text file with one a line; a file that isn't there is ``a,b,c`` itself.

    Raises:
        WeightspaceError: the file cannot be read, or isn't a list of names.
    """
    path = Path(source)
    if not _is_file(path):
        if path.suffix in (".txt", ".json", ".csv"):
            raise WeightspaceError(f"{path} cannot be read: there is no such file.")
        return [name for name in (part.strip() for part in str(source).split(",")) if name]
    text = _text(path)
    if path.suffix.lower() != ".json":
        return [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    names = parse_json(text, str(path))
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise WeightspaceError(f"{path} isn't a JSON list of names.")
    return [str(name) for name in names]


def _is_file(path: Path) -> bool:
    """Return whether a name is one of a file; a list of names may be longer than any of a file."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_labels(source: str | Path, labels: Iterable[Any]) -> list[Any]:
    """Return what :func:`read_names` does, as a metric's labels call it: some are numbers, which files have as text.

    A first line that is a header (``label``, ``class``, …), and no label, is skipped with a warning.
    """
    listed = list(labels)
    written = {str(label): label for label in listed if not isinstance(label, str)}
    written |= {label: label for label in listed if isinstance(label, str)}
    return [written.get(name, name) for name in without_header(read_names(source), written, source)]


def read_pairs(path: str | Path, *, header: bool | None = None) -> list[tuple[Any, ...]]:
    """Return rows ``(a, b)`` or ``(a, b, length)`` of a ``.csv`` or ``.tsv`` file.

    Args:
        path: of the file.
        header: whether the first line is one; by default where it looks like one (``child,parent``; a length that is
            no number), with a warning.

    Raises:
        WeightspaceError: the file cannot be read, or a row is something else.
    """
    path, rows = Path(path), []
    delimiter = _delimiter(path)
    table = [(number, row) for number, row in enumerate(_table(path, delimiter), start=1) if row]
    if header is None and is_header_of_pairs([row for _, row in table]):
        warn_skipped(path, delimiter.join(table[0][1]))
        header = True
    for number, row in table[int(bool(header)) :]:
        try:
            if len(row) not in (2, 3):
                raise ValueError
            rows.append((*(cell.strip() for cell in row[:2]), *map(float, row[2:])))
        except ValueError:
            raise WeightspaceError(
                f"{path}, line {number}: found {delimiter.join(row)[:80]!r}; "
                "expected two names, and a length if you like."
            ) from None
    if not rows:
        raise WeightspaceError(f"{path} is empty; expected a line for each edge.")
    return rows


def _table(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a table."""
    try:
        yield from csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter)
    except csv.Error as error:
        raise WeightspaceError(f"{path} isn't a table: {error}.") from error


def _text(path: Path) -> str:
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightspaceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
