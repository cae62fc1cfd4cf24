"""Arrays of numbers in ``.npy`` and ``.npz`` files: checked against the bytes that are there before memory is taken.

Nothing is unpickled, and a file that claims more than it holds, or becomes far larger than it is, is refused.
"""

from __future__ import annotations

import lzma
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from weightspace.checkpoints.zip_records import ZipError, read_directory

#: Kinds of numbers: bools, integers and floats.
_KINDS = "biuf"

#: Bytes that the compressed arrays of a file may have whatever it holds; beyond that, so many times its own bytes.
_SMALL = 500_000_000

#: Whatever reading the literal in a header may raise.
_HEADER_ERRORS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, EOFError, OSError, TokenError)

#: Whatever reading a record may raise: it is damaged, encrypted, or compressed in a way that nobody knows.
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
