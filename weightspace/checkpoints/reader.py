"""On-demand reading of a checkpoint's tensors from its files, in full or by range.

Tensors are read, not memory-mapped: if a mapped file is truncated, accessing the missing bytes kills the process
(SIGBUS); here it is an error that names the file.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from weightspace.checkpoints.assembled_reader import AssembledReader
from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.components import Component, find_components
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.flax_file import flax_contents
from weightspace.checkpoints.gguf_file import read_gguf
from weightspace.checkpoints.hf_folder import read_weights
from weightspace.checkpoints.metadata import CheckpointMetadata, Place, StoredPart, TensorInfo
from weightspace.checkpoints.open_files import OpenFiles
from weightspace.checkpoints.pieced_tensor import PiecedTensor
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.safetensors_file import read_safetensors
from weightspace.checkpoints.state_dict import StateDict, check_storable
from weightspace.checkpoints.torch_file import read_torch
from weightspace.checkpoints.training_folders import find_training
from weightspace.errors import CheckpointError, WeightspaceWarning


class RangeReader(Protocol):
    """A tensor read by ranges of its elements in row-major order."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D."""
        ...


class StoredTensor:
    """A tensor in a file, read by range of elements. Complex numbers are pairs of real ones along a new axis.

    Args:
        files: open files.
        place: location of the elements, in row-major order.
        info: dtype and shape.
    """

    def __init__(self, files: OpenFiles, place: Place, info: TensorInfo) -> None:
        dtype = DTYPES[info.dtype]
        self.dtype = dtype.to_real() if dtype.is_complex else dtype
        self.shape = (*info.shape, 2) if dtype.is_complex else info.shape
        self._files, self._place = files, place

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of the elements from ``start`` up to ``stop``, 1-D.

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


class LoadedTensor:
    """A tensor in memory, read by ranges of elements like one in a file."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)
        self._elements = tensor.reshape(-1)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of the elements from ``start`` up to ``stop``, 1-D."""
        return self._elements[start:stop].clone()


class CheckpointReader:
    """The tensors of a checkpoint, located by its headers; quantised ones are dequantised, in float32.

    Tensors of torch files with unknown locations are loaded all at once.

    Args:
        contents: metadata from the headers.
        files: open files, which may be shared with other readers.
    """

    def __init__(self, contents: CheckpointMetadata, files: OpenFiles | None = None) -> None:
        self.contents = contents
        self._loaded: StateDict | None = None
        self._files = files or OpenFiles()
        self._origins: dict[int, CheckpointReader] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.contents.tensors

    def __getitem__(self, name: str) -> Tensor:
        """Return a full tensor with the shape and dtype in the header.

        Raises:
            CheckpointError: the file is missing, has become shorter, or cannot be read.
        """
        info = self.contents.tensors[name]
        if name in self.contents.quantised or name in self.contents.assembled:
            reader = self._assembled(name) if name in self.contents.assembled else self._dequantised(name)
            return reader.read(0, math.prod(info.shape)).view(info.shape)
        if name in self.contents.pieces:
            numbers = PiecedTensor(self._files, self.contents.pieces[name], info)
            return numbers.read(0, math.prod(numbers.shape)).view(DTYPES[info.dtype]).view(info.shape)
        place = self.contents.places.get(name)
        if place is None:
            return self._in_memory(self.contents.renamed.get(name, name))
        elements = torch.empty(_extent(place, info), dtype=DTYPES[info.dtype])
        self._files(place.file).read_into(elements, place.start)
        return elements.view(info.shape) if place.strides is None else elements.as_strided(info.shape, place.strides)

    def stored(self, name: str) -> RangeReader | None:
        """Return a tensor to be read by range, or None if its elements aren't stored in order in a file."""
        if name in self.contents.assembled:
            return self._assembled(name)
        if name in self.contents.quantised:
            return self._dequantised(name)
        if name in self.contents.pieces:
            return PiecedTensor(self._files, self.contents.pieces[name], self.contents.tensors[name])
        place = self.contents.places.get(name)
        if place is None or place.strides is not None:
            return None
        return StoredTensor(self._files, place, self.contents.tensors[name])

    def _assembled(self, name: str) -> RangeReader:
        """Return a reader of a tensor that is read from parts of others."""
        assembled, info = self.contents.assembled[name], self.contents.tensors[name]
        origin = self._origins.setdefault(id(assembled.origin), CheckpointReader(assembled.origin, self._files))
        readers = {one: origin.stored(one) or LoadedTensor(origin[one]) for one in assembled.sources}
        return AssembledReader(assembled, info.shape, DTYPES[info.dtype], readers)

    def _dequantised(self, name: str) -> RangeReader:
        """Return a reader of a quantised tensor's values."""
        quantised = self.contents.quantised[name]
        return quantised.decoder({role: self._part(part) for role, part in quantised.parts.items()}, quantised)

    def _part(self, part: StoredPart) -> RangeReader:
        """Return a reader of a part of a quantised tensor."""
        if part.place is None or part.place.strides is not None:
            return LoadedTensor(self._in_memory(part.name))
        return StoredTensor(self._files, part.place, part.info)

    def _in_memory(self, name: str) -> Tensor:
        """Return a tensor by its name in the files, after loading all of them."""
        if self._loaded is None:
            self._loaded, _ = read_state(self.contents.path, self.contents.key, self.contents.components)
        return self._loaded[name]

    def state(self) -> StateDict:
        """Return copies of all tensors; tied ones stay tied."""
        state: StateDict = {}
        for name in self.contents.tensors:
            owner = self.contents.tied.get(name)
            state[name] = state[owner] if owner in state else self[name]
        return state


def read_state(
    path: Path, key: str | None = None, components: Sequence[Component] = ()
) -> tuple[StateDict, tuple[str, ...]]:
    """Return the named tensors of a local checkpoint, and notes on choices made while reading.

    See ``load_checkpoint``. ``components`` are those of a folder that are read, by default all.
    """
    if path.is_dir() and find_training(path) is not None:
        contents = read_contents(path, key=key)
        return CheckpointReader(contents).state(), contents.notes
    notes: list[str] = []

    def read(file: Path) -> StateDict:
        form = file_format(file)
        if form == "safetensors":
            state = read_safetensors(file)
            check_storable(state, file)
            return state
        if form == "flax":
            contents = flax_contents(file)
            notes.extend(contents.notes)
            return CheckpointReader(contents).state()
        state, choices = read_gguf(file) if form == "gguf" else read_torch(file, key)
        notes.extend(choices)
        return state

    if not path.is_dir():
        return read(path), tuple(notes)
    parts = {
        one.prefix: read_weights(path / one.folder, one.weights, read) for one in components or find_components(path)
    }
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}, tuple(notes)


def read_checkpoint(path: str | os.PathLike[str]) -> StateDict:
    """Read the tensors of a checkpoint into memory, independent of later changes to its files; tied ones stay tied.

    Args:
        path: as for ``load_checkpoint``.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or changes while it is being read.
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
    """Return the number of elements in memory from the first to the last of a tensor, inclusive."""
    if place.strides is None or not info.numel:
        return info.numel
    return 1 + sum((size - 1) * stride for size, stride in zip(info.shape, place.strides, strict=True))
