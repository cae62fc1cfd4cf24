"""Tensors of a checkpoint, read from their places in its files when they are asked for, whole or a range at a time.

They are read and not mapped: a file that becomes shorter while it is mapped ends the process (SIGBUS) where the bytes
are used; here it is an error that names the file.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.load_save import StrPath, read_state
from weightspace.checkpoints.metadata import CheckpointMetadata, Place, TensorInfo, read_contents
from weightspace.checkpoints.open_files import OpenFiles
from weightspace.checkpoints.state_dict import StateDict
from weightspace.errors import CheckpointError, WeightspaceWarning


class StoredTensor:
    """A tensor in a file, read by range of its elements. Complex numbers are pairs of real ones along a new axis.

    Args:
        files: opens the file.
        place: of the elements, in row-major order.
        info: dtype and shape.
    """

    def __init__(self, files: OpenFiles, place: Place, info: TensorInfo) -> None:
        dtype = DTYPES[info.dtype]
        self.dtype = dtype.to_real() if dtype.is_complex else dtype
        self.shape = (*info.shape, 2) if dtype.is_complex else info.shape
        self._files, self._place = files, place

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
        self._files(self._place.file).read_into(elements, self._place.start + start * self.dtype.itemsize)

    def read_runs_into(self, elements: Tensor, starts: Tensor, ends: Tensor, sources: Tensor) -> None:
        """Fill parts of a contiguous tensor of the same dtype with elements from anywhere in this one.

        Args:
            elements: the tensor.
            starts: of the parts there, in elements, int64.
            ends: of the parts there, in elements, int64.
            sources: where they start here, in elements, int64.

        Raises:
            CheckpointError: as ``read_into``.
        """
        size = self.dtype.itemsize
        places = (sources * size + self._place.start).tolist()
        self._files(self._place.file).read_runs_into(elements, (starts * size).tolist(), (ends * size).tolist(), places)


class CheckpointReader:
    """The tensors of a checkpoint, by what is known of its headers.

    Those of torch files whose places are not known are loaded all at once.

    Args:
        contents: what the headers say.
        files: that are open, also for other readers.
    """

    def __init__(self, contents: CheckpointMetadata, files: OpenFiles | None = None) -> None:
        self.contents = contents
        self._loaded: StateDict | None = None
        self._files = files or OpenFiles()

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
        self._files(place.file).read_into(elements, place.start)
        return elements.view(info.shape) if place.strides is None else elements.as_strided(info.shape, place.strides)

    def stored(self, name: str) -> StoredTensor | None:
        """Return a tensor to be read by range; None where its elements don't lie in their order in a file."""
        place = self.contents.places.get(name)
        if place is None or place.strides is not None:
            return None
        return StoredTensor(self._files, place, self.contents.tensors[name])

    def state(self) -> StateDict:
        """Return all tensors, in memory of their own; tied ones tied."""
        state: StateDict = {}
        for name in self.contents.tensors:
            owner = self.contents.tied.get(name)
            state[name] = state[owner] if owner in state else self[name]
        return state


def read_checkpoint(path: StrPath) -> StateDict:
    """Return the tensors of a checkpoint in memory of their own, whatever becomes of its files; tied ones tied.

    Args:
        path: as for ``load_checkpoint``.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or changes while it is read.
    """
    local = fetched_path(path)
    with one_line_errors(local, "read"):
        contents = read_contents(local)
        before = [file.stat() for file in contents.files]
        state = CheckpointReader(contents).state()
        after = [file.stat() for file in contents.files]
    if [(one.st_size, one.st_mtime_ns) for one in before] != [(one.st_size, one.st_mtime_ns) for one in after]:
        raise CheckpointError(
            f"{local} has changed while it was read. Is something still writing it? Run the command again when it is "
            "whole."
        )
    for note in contents.notes:
        warnings.warn(note, WeightspaceWarning, stacklevel=2)
    return state


def _extent(place: Place, info: TensorInfo) -> int:
    """Return how many elements lie between the first and the last of a tensor, both included."""
    if place.strides is None or not info.numel:
        return info.numel
    return 1 + sum((size - 1) * stride for size, stride in zip(info.shape, place.strides, strict=True))
