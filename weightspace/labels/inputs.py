"""Readers of input files for the label commands: arrays, lists of names, edges and parents.

Array headers are checked against the file size before memory is allocated. Nothing is unpickled, and files that claim
more data than they hold, or decompress to far more than their size, are rejected.
"""

from __future__ import annotations

import csv
import io
import lzma
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from weightspace.checkpoints.atomic_write import check_regular
from weightspace.checkpoints.json_file import parse_json
from weightspace.checkpoints.zip_records import ZipError, read_directory
from weightspace.errors import WeightspaceError
from weightspace.labels.headers import (
    header_of_numbers,
    is_documented,
    is_header_of_pairs,
    names_the_parent_first,
    warn_skipped,
    without_header,
)
from weightspace.suggestions import unknown

ARRAYS = (".npy", ".npz", ".safetensors", ".csv", ".tsv")


def read_array(path: str | Path, key: str | None = None, *, header: bool | None = None) -> Any:
    """Read an array from a ``.npy``, ``.npz``, ``.safetensors``, ``.csv`` or ``.tsv`` file; nothing is unpickled.

    Args:
        path: path of the file.
        key: name of the array, if the file has several.
        header: whether the first line of a table is a header; by default, a line without numbers is, with a warning.

    Raises:
        WeightspaceError: the file cannot be read, has another suffix, or holds several arrays and ``key`` is None.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ARRAYS:
        raise WeightspaceError(f"An array must be a {', '.join(ARRAYS)} file; found {path.name!r}.")
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
    """Return the column names of a table of numbers, or None if it has none or the file isn't a table.

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
    """Return the numbers of a table, with at least one row."""
    if header is None and (found := header_of_numbers(path, delimiter)) is not None:
        warn_skipped(path, delimiter.join(found))
        header = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy's, about an empty table, which is rejected below
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
        raise WeightspaceError(f"{path} has {len(arrays)} arrays ({', '.join(sorted(arrays))}); choose one with --key.")
    return arrays[next(iter(arrays))]


def read_names(source: str | Path) -> list[str]:
    """Read names from a ``.json`` list or a text file, one per line; if there is no such file, split ``a,b,c`` itself.

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
    blank = next((position for position, name in enumerate(names) if not str(name).strip()), None)
    if blank is not None:
        raise WeightspaceError(f"{path}: the name at position {blank:,} is {names[blank]!r}; expected a label.")
    return [str(name) for name in names]


def _is_file(path: Path) -> bool:
    """Return whether a source is a file; a list of names may be longer than any file name."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_labels(source: str | Path, labels: Iterable[Any]) -> list[Any]:
    """Read names as :func:`read_names` does and map them to a metric's labels, some of which may be numbers.

    A first line that is a header (``label``, ``class``, …) and not a label is skipped with a warning.
    """
    listed = list(labels)
    written = {str(label): label for label in listed if not isinstance(label, str)}
    written |= {label: label for label in listed if isinstance(label, str)}
    return [written.get(name, name) for name in without_header(read_names(source), written, source)]


def read_pairs(path: str | Path, *, header: bool | None = None, child_first: bool = False) -> list[tuple[Any, ...]]:
    """Read rows ``(a, b)`` or ``(a, b, length)`` from a ``.csv`` or ``.tsv`` file.

    Args:
        path: path of the file.
        header: whether the first line is a header; by default, a line that looks like one is (``child,parent``; a
            length that isn't a number), with a warning.
        child_first: the first column is the child; swap the columns if the header says ``parent,child``. The parent of
            a root may be empty.

    Raises:
        WeightspaceError: the file cannot be read, a row has another form, or a name is empty.
    """
    path, rows = Path(path), []
    delimiter = _delimiter(path)
    table = [(number, row) for number, row in enumerate(_table(path, delimiter), start=1) if row]
    if header is None and is_header_of_pairs([row for _, row in table]):
        if not is_documented(table[0][1]):
            warn_skipped(path, delimiter.join(table[0][1]))
        header = True
    swapped = child_first and bool(header) and names_the_parent_first(table[0][1])
    for number, row in table[int(bool(header)) :]:
        try:
            if len(row) not in (2, 3):
                raise ValueError
            a, b = (cell.strip() for cell in row[:2])
            length = tuple(map(float, row[2:]))
        except ValueError:
            raise WeightspaceError(
                f"{path}, line {number}: found {delimiter.join(row)[:80]!r}; expected two names and an optional length."
            ) from None
        first, second = (b, a) if swapped else (a, b)
        if not first or not (second or child_first):
            root = " Only the parent of a root may be empty." if child_first else ""
            shown = delimiter.join(row)[:80]
            raise WeightspaceError(
                f"{path}, line {number}: found {shown!r}, with an empty name; expected two names.{root}"
            )
        rows.append((first, second, *length))
    if not rows:
        raise WeightspaceError(f"{path} is empty; expected one line per edge.")
    return rows


def _table(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a table."""
    try:
        yield from csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    except csv.Error as error:
        raise WeightspaceError(f"{path} isn't a table: {error}.") from error


def _text(path: Path) -> str:
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightspaceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


#: NumPy dtype kinds of numbers: bools, integers and floats.
_KINDS = "biuf"

#: Decompressed size in bytes that is accepted from any file; beyond it, a multiple of the file's own size.
_SMALL = 500_000_000

#: Exceptions that parsing the literal in a header may raise.
_HEADER_ERRORS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, EOFError, OSError, TokenError)

#: Exceptions that reading a record may raise: it is damaged, encrypted, or compressed by an unknown method.
_ARCHIVE_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)


class ArrayFileError(ValueError):
    """A damaged or unsupported array file, described in a few words."""


def read_npy(path: Path) -> Any:
    """Return the array of a file, memory-mapped.

    Raises:
        ArrayFileError: the file is damaged, or holds something other than numbers.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        shape, fortran_order, dtype = _header(file, os.fstat(file.fileno()).st_size)
        order = "F" if fortran_order else "C"
        if 0 in shape:
            return np.empty(shape, dtype, order)
        return np.memmap(file, dtype, "r", file.tell(), shape, order)


def read_npz(path: Path) -> Mapping[str, Any]:
    """Return the arrays of a file by name; each is read on access.

    Raises:
        ArrayFileError: the file is damaged, or holds something other than numbers.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            records = read_directory(file, small=_SMALL)
    except ZipError as error:
        raise ArrayFileError(f"damaged, {error}") from error
    names = {name.removesuffix(".npy"): record for name, record in records.items()}
    if not names or len(names) != len(records) or not all(name.endswith(".npy") for name in records):
        raise ArrayFileError("it holds records other than arrays")
    return _Arrays(path, {name: record.size for name, record in names.items()})


class _Arrays(Mapping[str, Any]):
    """The arrays of an archive, read on access."""

    def __init__(self, path: Path, sizes: Mapping[str, int]) -> None:
        self._path = path
        self._sizes = sizes

    def __iter__(self) -> Any:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, name: str) -> Any:
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(f"{name}.npy") as file:
                shape, fortran_order, dtype = _header(file, self._sizes[name])
                content = bytearray(file.read())
            array = np.frombuffer(content, dtype)
            return array.reshape(shape, order="F" if fortran_order else "C")
        except _ARCHIVE_ERRORS as error:
            raise ArrayFileError(f"damaged ({error})") from error


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the shape, order and dtype of an array of ``size`` bytes in all; its values follow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about headers written by Python 2
            if np.lib.format.read_magic(file) == (1, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
    except _HEADER_ERRORS as error:
        raise ArrayFileError(f"its header is damaged ({type(error).__name__})") from error
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise ArrayFileError(f"its dtype is {str(dtype)[:40]}; expected numbers")
    needed = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or needed != size - file.tell():
        raise ArrayFileError(f"its header claims the shape {str(shape)[:80]}, but {size - file.tell():,} bytes follow")
    return shape, fortran_order, dtype
