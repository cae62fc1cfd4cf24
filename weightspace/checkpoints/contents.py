"""What a checkpoint holds, from its headers alone: names, dtypes and shapes, without reading a tensor.

Safetensors files cost no torch; the list of a torch file is in its pickle, which only torch reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from weightspace.checkpoints.folder import SAFETENSORS_SUFFIX, Weights, check_index, file_suffix, find_weights
from weightspace.checkpoints.safetensors_header import ITEMSIZES, read_header, tied_entries
from weightspace.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: the safetensors name of its dtype (``BF16``), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take."""
        return self.numel * ITEMSIZES[self.dtype]

    @property
    def is_inexact(self) -> bool:
        """Whether it holds float or complex numbers, which can be averaged."""
        return self.dtype[0] in "FBC" and self.dtype != "BOOL"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a tensor are.

    Attributes:
        file: that holds them.
        start: the first of them.
        strides: of the elements, where these are not in row-major order; else None.
    """

    file: Path
    start: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint, in its order.

    Attributes:
        path: the file or folder.
        files: the files that hold the weights.
        tensors: name -> dtype and shape.
        tied: name -> earlier name that shows the same memory.
        places: name -> where its bytes are; those that only torch can read have none.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    tied: dict[str, str]
    places: dict[str, Place]


def read_contents(path: Path) -> Contents:
    """Return what a checkpoint holds.

    Args:
        path: a ``.safetensors`` file, a torch file, or a Hugging Face folder.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    if not path.is_dir():
        return _file_contents(path)
    weights = find_weights(path)
    parts = {file.name: _file_contents(file) for file in weights.files}
    if weights.index is None:
        (part,) = parts.values()
        return Contents(path, part.files, part.tensors, part.tied, part.places)
    return _sharded(path, weights, parts, weights.index)


def _sharded(path: Path, weights: Weights, parts: dict[str, Contents], index: dict[str, str]) -> Contents:
    """Return the contents of shards, in the order of their index."""
    check_index(path, weights.entrance, index, {shard: part.tensors for shard, part in parts.items()})
    tensors = {name: parts[shard].tensors[name] for name, shard in index.items()}
    tied = {name: owner for part in parts.values() for name, owner in part.tied.items()}
    places = {name: place for part in parts.values() for name, place in part.places.items()}
    return Contents(path, weights.files, tensors, tied, places)


def _file_contents(path: Path) -> Contents:
    """Return the contents of one file."""
    if file_suffix(path) != SAFETENSORS_SUFFIX:
        return _torch_contents(path)
    header = read_header(path)
    tied = tied_entries(path, header)
    tensors = {name: TensorInfo(entry.dtype, entry.shape) for name, entry in header.entries.items()}
    tensors |= {name: tensors[owner] for name, owner in tied.items()}
    places = {name: Place(path, header.data_start + entry.start) for name, entry in header.entries.items()}
    places |= {name: places[owner] for name, owner in tied.items()}
    return Contents(path, (path,), tensors, tied, places)


def _torch_contents(path: Path) -> Contents:
    """Return the contents of a torch file."""
    from weightspace.checkpoints.dtypes import NAMES
    from weightspace.checkpoints.files import load_checkpoint
    from weightspace.checkpoints.mapping import mapped_places
    from weightspace.checkpoints.state import dtype_name, tied_names

    state = load_checkpoint(path)
    for name, tensor in state.items():
        if tensor.dtype not in NAMES:
            raise CheckpointError(
                f"{path}: {name!r} has dtype {dtype_name(tensor.dtype)}, which cannot be merged. Convert it first."
            )
    tensors = {name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
    places = {name: Place(path, start, strides) for name, (start, strides) in mapped_places(path, state).items()}
    return Contents(path, (path,), tensors, tied_names(state), places)
