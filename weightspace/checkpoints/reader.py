"""Tensors of a checkpoint, read from their places in its files when they are asked for, whole or a range at a time.

They are read and not mapped: a file that becomes shorter while it is mapped ends the process (SIGBUS) where the bytes
are used; here it is an error that names the file.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoints.contents import Contents, Place, TensorInfo
from weightspace.checkpoints.disk import one_line_errors
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.files import read_state
from weightspace.checkpoints.state import StateDict
from weightspace.errors import CheckpointError

#: Files that are open at a time, at most: a soup of many models in many shards has more than a process may open.
_OPEN = 128


class StoredTensor:
    """A tensor in a file, read by range of its elements. Complex numbers are pairs of real ones along a new axis."""

    def __init__(self, file: OpenFile, start: int, info: TensorInfo) -> None:
        dtype = DTYPES[info.dtype]
        self.dtype = dtype.to_real() if dtype.is_complex else dtype
        self.shape = (*info.shape, 2) if dtype.is_complex else info.shape
        self._file, self._start = file, start

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D, in memory of their own.

        Raises:
            CheckpointError: the file has become shorter, or cannot be read.
        """
        elements = torch.empty(stop - start, dtype=self.dtype)
        self.read_into(elements, start)
        return elements

    def read_into(self, elements: Tensor, start: int) -> None:
        """Fill a contiguous 1-D tensor of the same dtype with the elements from ``start`` on.

        Raises:
            CheckpointError: the file has become shorter, or cannot be read.
        """
        self._file.read_into(elements, self._start + start * self.dtype.itemsize)


class CheckpointReader:
    """The tensors of a checkpoint, by what is known of its headers.

    Those of torch files whose places are not known are loaded all at once.

    Args:
        contents: what the headers say.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._loaded: StateDict | None = None
        self._open = lru_cache(_OPEN)(OpenFile)

    def __contains__(self, name: str) -> bool:
        return name in self.contents.tensors

    def __getitem__(self, name: str) -> Tensor:
        """Return a whole tensor of the shape and dtype that the header says.

        Raises:
            CheckpointError: the file is gone, has become shorter, or cannot be read.
        """
        place = self.contents.places.get(name)
        if place is None:
            if self._loaded is None:
                self._loaded, _ = read_state(self.contents.path, self.contents.key)
            return self._loaded[self.contents.renamed.get(name, name)]
        info = self.contents.tensors[name]
        elements = torch.empty(_extent(place, info), dtype=DTYPES[info.dtype])
        self._open(place.file).read_into(elements, place.start)
        return elements.view(info.shape) if place.strides is None else elements.as_strided(info.shape, place.strides)

    def stored(self, name: str) -> StoredTensor | None:
        """Return a tensor to be read by range; None where its elements don't lie in their order in a file."""
        place = self.contents.places.get(name)
        if place is None or place.strides is not None:
            return None
        return StoredTensor(self._open(place.file), place.start, self.contents.tensors[name])

    def state(self) -> StateDict:
        """Return all tensors, in memory of their own; tied ones tied."""
        state: StateDict = {}
        for name in self.contents.tensors:
            owner = self.contents.tied.get(name)
            state[name] = state[owner] if owner in state else self[name]
        return state


class OpenFile:
    """A file that is open for reading; it is closed when nothing speaks of it any more.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is gone, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        with one_line_errors(path, "read"):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, elements: Tensor, offset: int) -> None:
        """Fill a contiguous tensor with the bytes from an offset on.

        Raises:
            CheckpointError: the file ends before, or cannot be read.
        """
        if not elements.numel():
            return
        view = memoryview(elements.view(torch.uint8).numpy().data)
        with one_line_errors(self.path, "read"):
            while view:
                count = os.preadv(self._descriptor, [view], offset)
                if not count:
                    raise CheckpointError(
                        f"{self.path} ends at byte {offset:,}, but its header promises {len(view):,} more: it has "
                        "become shorter since the header was read. Is something still writing it? Run the command "
                        "again when it is whole."
                    )
                view, offset = view[count:], offset + count


def _extent(place: Place, info: TensorInfo) -> int:
    """Return how many elements lie between the first and the last of a tensor, both included."""
    if place.strides is None or not info.numel:
        return info.numel
    return 1 + sum((size - 1) * stride for size, stride in zip(info.shape, place.strides, strict=True))
