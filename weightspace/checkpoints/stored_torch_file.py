"""Torch files read in place: their pickle as plain data, and the location of each tensor's bytes, without torch.

A file may be a part of a larger one, as in distributed checkpoints.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from weightspace.checkpoints.inert_pickle import TensorView, read_pickle
from weightspace.checkpoints.metadata import Place, TensorInfo
from weightspace.checkpoints.safetensors_header import ITEMSIZES
from weightspace.checkpoints.torch_archive import Archive, is_archive, read_archive
from weightspace.checkpoints.torch_pickle import Global, TorchPickleError
from weightspace.checkpoints.zip_records import STORED, ZipError, check_record
from weightspace.errors import CheckpointError


@dataclass
class StoredTorchFile:
    """The content of a torch file, in which tensors are views of storages.

    Attributes:
        path: the file.
        start: offset of its first byte in ``path``.
        value: the content.
        offsets: name of a storage -> offset of its first byte in ``path``.
    """

    path: Path
    start: int
    value: Any
    offsets: dict[str, int] = field(default_factory=dict)

    def tensor(self, view: TensorView) -> tuple[TensorInfo, Place]:
        """Return dtype, shape and location of a tensor.

        Raises:
            CheckpointError: it is quantised by torch, or its dtype isn't read.
        """
        if view.dtype is None:
            raise CheckpointError(f"{self.path} has a tensor in a {view.storage.kind[:80]}, which is not read.")
        start = self.offsets.get(view.storage.key, self.start) + view.offset * ITEMSIZES[view.dtype]
        strides = None if view.is_contiguous else view.strides
        return TensorInfo(view.dtype, view.shape), Place(self.path, start, strides)


def read_stored(
    file: BinaryIO, path: Path, *, allows: Callable[[Global], bool], start: int = 0, length: int | None = None
) -> StoredTorchFile:
    """Read the content of an open torch file, without its tensors.

    Args:
        file: the open file.
        path: its path.
        allows: see ``read_pickle``.
        start: offset of the torch file in it.
        length: its length; None: up to the end.

    Raises:
        CheckpointError: the file is damaged, in the format before torch 1.6, or has objects that aren't allowed.
        OSError: it cannot be read.
    """
    end = file.seek(0, 2) if length is None else start + length
    window = cast(BinaryIO, _Window(file, start, end))
    try:
        if not is_archive(window):
            raise TorchPickleError(
                "it doesn't begin like a file of torch.save",
                "Copy it again, or, if torch before 1.6 wrote it, save it again with a newer one.",
            )
        archive = read_archive(window)
        claims = read_pickle(archive.pickle, allows=allows)
        stored = StoredTorchFile(path, start, claims.value)
        for key, storage in claims.storages.items():
            if storage.nbytes:
                stored.offsets[key] = start + _offset(window, archive, archive.storage(storage).name)
    except ZipError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy it again.") from error
    except TorchPickleError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. {error.hint}") from error
    return stored


def _offset(file: BinaryIO, archive: Archive, name: str) -> int:
    """Return the offset of a storage's bytes in an archive.

    Raises:
        ZipError: its bytes are compressed, misplaced, or in another byte order.
    """
    record = archive.records[name]
    if record.method != STORED or not archive.is_native(file):
        raise ZipError(f"the storage {name[:80]!r} is compressed, or in another machine's byte order")
    if not record.fits:
        check_record(file, record)
    return record.start


class _Window(io.RawIOBase):
    """A range of an open file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._size, self._at = file, start, end - start, 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to an offset from the start, or from the end if ``whence`` is 2."""
        self._at = offset + (self._size if whence == 2 else 0)
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Return up to that many bytes, or all that follow."""
        left = self._size - self._at
        if left <= 0:
            return b""
        self._file.seek(self._start + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content
