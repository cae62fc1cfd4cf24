"""Metadata of a checkpoint's tensors from its headers alone: names, dtypes and shapes.

Safetensors headers need no torch; the tensors of a torch file are listed in its pickle, which only torch can read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.hf_folder import Weights, check_index, find_weights
from weightspace.checkpoints.safetensors_header import ITEMSIZES, read_header, tied_entries
from weightspace.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: the safetensors name of its dtype (``BF16``), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return self.numel * ITEMSIZES[self.dtype]

    @property
    def is_inexact(self) -> bool:
        """Whether it is float or complex, so that it can be averaged."""
        return self.dtype[0] in "FBC" and self.dtype != "BOOL"


@dataclass(frozen=True, slots=True)
class Place:
    """The location of a tensor's bytes.

    Attributes:
        file: file that holds them.
        start: offset of the first byte.
        strides: strides of the elements if these aren't in row-major order, else None.
    """

    file: Path
    start: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A stored tensor that is part of a quantised one: its name in the files, its dtype and shape, and its location.

    ``place`` is None for tensors that only torch can read.
    """

    name: str
    info: TensorInfo
    place: Place | None


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """A tensor that is stored in several parts, such as FP8 numbers and their scales.

    Attributes:
        format: the format, for messages: ``FP8, a scale per tensor``.
        shape: shape of the values.
        parts: role -> stored tensor: ``values``, ``scales``.
        decoder: ``decoder(parts, tensor)``, a module-level function, returns a reader of the values from readers of the
            parts by role; it may import torch, which planning does not.
        settings: further arguments of the decoder.
        left_out: names of stored tensors that belong to it but don't affect its values, such as activation scales.
        dtype: safetensors name of the dtype that the network computes in, which is also that of a merged tensor.
        overhead: bytes that reading a range needs in addition to its elements as float32.
        is_exact: whether it is not quantised, but stored in another order or with an offset.
    """

    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, StoredPart]
    decoder: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    dtype: str = "F32"
    overhead: int = 0
    is_exact: bool = False

    @property
    def nbytes(self) -> int:
        """The number of bytes of its parts in the files."""
        return sum(part.info.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class CheckpointMetadata:
    """The tensors of a checkpoint, in its order.

    Attributes:
        path: the file or folder.
        files: the files that hold the weights.
        tensors: name -> dtype and shape.
        tied: name -> earlier name of the same memory.
        places: name -> location of its bytes, except for tensors that only torch can read.
        key: the requested entry of a torch file that holds the tensors, if any.
        renamed: name -> name in the file, if they differ.
        notes: notes on choices made while reading, one line each.
        quantised: name -> parts of the tensors that are decoded on reading; those that are quantised become F32.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    tied: dict[str, str]
    places: dict[str, Place]
    key: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    quantised: Mapping[str, QuantisedTensor] = field(default_factory=dict)

    def is_quantised(self, name: str | None = None) -> bool:
        """Return whether a tensor is dequantised on reading, or any tensor is."""
        found = self.quantised.values() if name is None else filter(None, [self.quantised.get(name)])
        return any(not tensor.is_exact for tensor in found)

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of a tensor in the files: those of all its parts if it is quantised."""
        quantised = self.quantised.get(name)
        return self.tensors[name].nbytes if quantised is None else quantised.nbytes

    def without_prefix(self, prefix: str) -> CheckpointMetadata:
        """Return the same tensors with a prefix removed from all names that start with it.

        Raises:
            CheckpointError: two names collide, or a name becomes empty.
        """
        return self.under_names({name: name.removeprefix(prefix) for name in self.tensors}, f"the prefix {prefix!r}")

    def under_names(self, names: Mapping[str, str], without: str) -> CheckpointMetadata:
        """Return the same tensors under shorter names.

        Args:
            names: name -> shorter name, for all tensors.
            without: description of the removed part for errors.

        Raises:
            CheckpointError: two names collide, or a name becomes empty.
        """
        shorts: dict[str, str] = {}
        for name, short in names.items():
            if not short or short in shorts:
                problem = f"{shorts[short]!r} is, too" if short else "nothing is left"
                raise CheckpointError(f"{self.path}: without {without}, {name!r} is {short!r}; {problem}.")
            shorts[short] = name
        return replace(
            self,
            tensors={names[name]: info for name, info in self.tensors.items()},
            tied={names[name]: names[owner] for name, owner in self.tied.items()},
            places={names[name]: place for name, place in self.places.items()},
            renamed={short: self.renamed.get(name, name) for short, name in shorts.items()},
            quantised={names[name]: quantised for name, quantised in self.quantised.items()},
        )


def read_contents(path: Path, *, key: str | None = None) -> CheckpointMetadata:
    """Read the metadata of a checkpoint.

    Args:
        path: a safetensors file, a torch file, a GGUF file, or a Hugging Face folder.
        key: the entry of torch files that holds the state dict; see ``load_checkpoint``.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    with one_line_errors(path, "read"):
        if not path.is_dir():
            return _file_contents(path, key)
        weights = find_weights(path)
        parts = {file.name: _file_contents(file, key) for file in weights.files}
    if weights.index is None:
        (part,) = parts.values()
        return replace(part, path=path)
    return _sharded(path, weights, parts, weights.index)


def _sharded(
    path: Path, weights: Weights, parts: dict[str, CheckpointMetadata], index: dict[str, str]
) -> CheckpointMetadata:
    """Return the metadata of shards, in the order of their index."""
    check_index(path, weights.entrance, index, {shard: part.tensors for shard, part in parts.items()})
    tensors = {name: parts[shard].tensors[name] for name, shard in index.items()}
    tied = {name: owner for part in parts.values() for name, owner in part.tied.items()}
    places = {name: place for part in parts.values() for name, place in part.places.items()}
    notes = tuple(note for part in parts.values() for note in part.notes)
    return CheckpointMetadata(path, weights.files, tensors, tied, places, next(iter(parts.values())).key, notes=notes)


def _file_contents(path: Path, key: str | None) -> CheckpointMetadata:
    """Return the metadata of one file."""
    form = file_format(path)
    if form == "torch":
        return _torch_contents(path, key)
    if form == "gguf":
        return _gguf_contents(path)
    header = read_header(path)
    tied = tied_entries(path, header)
    tensors = {name: TensorInfo(entry.dtype, entry.shape) for name, entry in header.entries.items()}
    tensors |= {name: tensors[owner] for name, owner in tied.items()}
    places = {name: Place(path, header.data_start + entry.start) for name, entry in header.entries.items()}
    places |= {name: places[owner] for name, owner in tied.items()}
    return CheckpointMetadata(path, (path,), tensors, tied, places)


def _gguf_contents(path: Path) -> CheckpointMetadata:
    """Return the metadata of a GGUF file; tensors that aren't stored plainly are decoded on reading."""
    from weightspace.checkpoints.gguf.tensors import common_dtype, decoder, read_tensors, settings_of

    found = read_tensors(path)
    dtype = common_dtype(found.tensors)
    tensors = {own.name: TensorInfo(own.dtype, own.shape) for own in found.tensors}
    places = {own.name: Place(path, own.start) for own in found.tensors if own.is_plain}
    decoded = {
        own.name: QuantisedTensor(
            f"GGUF {own.kind.name}",
            own.shape,
            {"blocks": StoredPart(own.stored, TensorInfo("U8", (own.nbytes,)), Place(path, own.start))},
            decoder,
            settings_of(own),
            dtype=own.dtype if own.kind.dtype else dtype,
            overhead=own.overhead,
            is_exact=own.kind.dtype is not None,
        )
        for own in found.tensors
        if not own.is_plain
    }
    renamed = {own.name: own.stored for own in found.tensors}
    notes = (*found.notes, *dequantising_note(path, decoded.values()))
    return CheckpointMetadata(path, (path,), tensors, {}, places, renamed=renamed, notes=notes, quantised=decoded)


def dequantising_note(path: Path, tensors: Iterable[QuantisedTensor]) -> list[str]:
    """Return a line on the tensors that are dequantised while a checkpoint is read, if there are any."""
    counts = Counter(tensor.format for tensor in tensors if not tensor.is_exact)
    if not counts:
        return []
    listed = "; ".join(f"{form} ({count:,} tensor{'' if count == 1 else 's'})" for form, count in counts.items())
    return [f"{path} is dequantised while it is read, to float32: {listed}. Its rounding errors are merged."]


def _torch_contents(path: Path, key: str | None) -> CheckpointMetadata:
    """Return the metadata of a torch file."""
    from weightspace.checkpoints.dtypes import NAMES
    from weightspace.checkpoints.load_save import read_state
    from weightspace.checkpoints.memory_map import mapped_places
    from weightspace.checkpoints.state_dict import dtype_name, tied_names

    state, notes = read_state(path, key)
    for name, tensor in state.items():
        if tensor.dtype not in NAMES:
            raise CheckpointError(
                f"{path}: {name!r} has dtype {dtype_name(tensor.dtype)}, which cannot be merged. Convert it first."
            )
    tensors = {name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
    places = {name: Place(path, start, strides) for name, (start, strides) in mapped_places(path, state).items()}
    return CheckpointMetadata(path, (path,), tensors, tied_names(state), places, key, notes=notes)
