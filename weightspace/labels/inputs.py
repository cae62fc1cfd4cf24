"""Inputs of the label commands from files: arrays, lists of names, edges and parents.

Arrays are checked against the bytes that are there before memory is taken. Nothing is unpickled, and a file that claims
more than it holds, or becomes far larger than it is, is refused.
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
    is_header_of_pairs,
    names_the_parent_first,
    warn_skipped,
    without_header,
)
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


def read_pairs(path: str | Path, *, header: bool | None = None, child_first: bool = False) -> list[tuple[Any, ...]]:
    """Return rows ``(a, b)`` or ``(a, b, length)`` of a ``.csv`` or ``.tsv`` file.

    Args:
        path: of the file.
        child_first: swap the columns where a header says ``parent,child``.
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
    swapped = child_first and header and names_the_parent_first(table[0][1])
    return [(b, a, *length) for a, b, *length in rows] if swapped else rows


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


#: Kinds of numbers: bools, integers and floats.
_KINDS = "biuf"

#: Bytes that the compressed arrays of a file may have whatever it holds; beyond that, so many times its own bytes.
_SMALL = 500_000_000

#: Whatever reading the literal in a header may raise.
_HEADER_ERRORS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, EOFError, OSError, TokenError)

#: Whatever reading a record may raise: it is damaged, encrypted, or compressed by an unknown method.
_ARCHIVE_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)


class ArrayFileError(ValueError):
    """Says in a few words what is wrong with a file of arrays."""


def read_npy(path: Path) -> Any:
    """Return the array of a file, mapped into memory.

    Raises:
        ArrayFileError: the file is damaged, or holds something else than numbers.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        shape, fortran_order, dtype = _header(file, os.fstat(file.fileno()).st_size)
        order = "F" if fortran_order else "C"
        if 0 in shape:
            return np.empty(shape, dtype, order)
        return np.memmap(file, dtype, "r", file.tell(), shape, order)


def read_npz(path: Path) -> Mapping[str, Any]:
    """Return the arrays of a file by name, each of which is read when it is asked for.

    Raises:
        ArrayFileError: the file is damaged, or holds something else than numbers.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            records = read_directory(file, small=_SMALL)
    except ZipError as error:
        raise ArrayFileError(f"damaged, {error}") from error
    names = {name.removesuffix(".npy"): record for name, record in records.items()}
    if not names or len(names) != len(records) or not all(name.endswith(".npy") for name in records):
        raise ArrayFileError("not a file of arrays alone")
    return _Arrays(path, {name: record.size for name, record in names.items()})


class _Arrays(Mapping[str, Any]):
    """The arrays of an archive."""

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
    """Return the shape, the order and the dtype of an array that has so many bytes in all; its values come next."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about headers that Python 2 wrote
            if np.lib.format.read_magic(file) == (1, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
    except _HEADER_ERRORS as error:
        raise ArrayFileError(f"its header is damaged ({type(error).__name__})") from error
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise ArrayFileError(f"an array of {str(dtype)[:40]}, expected numbers")
    needed = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or needed != size - file.tell():
        raise ArrayFileError(f"its header claims the shape {str(shape)[:80]}, but {size - file.tell():,} bytes follow")
    return shape, fortran_order, dtype
