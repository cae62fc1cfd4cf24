"""Metadata of a checkpoint's tensors: names, dtypes, shapes and locations, without their elements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from weightspace.checkpoints.components import Component
from weightspace.checkpoints.safetensors_header import ITEMSIZES
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
class Piece:
    """A part of a tensor with a location of its own, such as a rank's shard.

    Attributes:
        place: location of its elements, in row-major order.
        starts: index of its first element in the tensor, one number per axis; a single number is an index into all
            elements in row-major order.
        shape: its shape, with as many axes.
    """

    place: Place
    starts: tuple[int, ...]
    shape: tuple[int, ...]


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


class CopiedPiece(NamedTuple):
    """Elements of a tensor that are read from another one; strides and offsets are in elements.

    Attributes:
        source: name of the other tensor.
        shape: numbers of elements along the dimensions in which they are laid out.
        source_strides: distance of neighbours along each of them in the other tensor.
        source_offset: the first element there.
        strides: as ``source_strides``, in the tensor itself.
        offset: the first element in the tensor itself.
    """

    source: str
    shape: tuple[int, ...]
    source_strides: tuple[int, ...]
    source_offset: int
    strides: tuple[int, ...]
    offset: int

    @property
    def run(self) -> int:
        """The number of elements that follow each other in both tensors."""
        length = 1
        for dim in sorted(range(len(self.shape)), key=lambda dim: self.strides[dim]):
            if self.shape[dim] > 1 and {self.source_strides[dim], self.strides[dim]} != {length}:
                break
            length *= self.shape[dim]
        return length


#: Elements of a run that is long enough to be read by itself.
_LONG_RUN = 2**10


@dataclass(frozen=True)
class AssembledTensor:
    """A tensor that is read from parts of others, as a name map says: fused, split, stacked or transposed.

    Attributes:
        pieces: where its elements are; each belongs to exactly one piece.
        origin: the checkpoint with the other tensors.
    """

    pieces: tuple[CopiedPiece, ...]
    origin: CheckpointMetadata

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors that it is read from."""
        return tuple(dict.fromkeys(piece.source for piece in self.pieces))

    @property
    def is_scattered(self) -> bool:
        """Whether neighbours in it are far apart in the other tensors: it is transposed, or its parts alternate."""
        return any(piece.run < min(math.prod(piece.shape), _LONG_RUN) for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        """The number of bytes of its elements in the files."""
        shares = ((piece.source, math.prod(piece.shape)) for piece in self.pieces)
        sizes = (
            self.origin.stored_bytes(name) * count / self.origin.tensors[name].numel for name, count in shares if count
        )
        return round(sum(sizes))


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
        pieces: name -> pieces of the tensors that are stored in several, by increasing position; they cover it.
        components: the parts of a folder that it is read from; empty for a file.
        assembled: name -> pieces of the tensors that a name map fuses, splits, stacks or transposes on reading.
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
    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    components: tuple[Component, ...] = ()
    assembled: Mapping[str, AssembledTensor] = field(default_factory=dict)

    def quantised_parts(self, name: str) -> tuple[QuantisedTensor, ...]:
        """Return the decoded tensors that a tensor is read from: itself, or those that it is assembled from."""
        if (assembled := self.assembled.get(name)) is not None:
            return tuple(part for one in assembled.sources for part in assembled.origin.quantised_parts(one))
        return (self.quantised[name],) if name in self.quantised else ()

    def is_quantised(self, name: str | None = None) -> bool:
        """Return whether a tensor is dequantised on reading, or any tensor is."""
        names = (*self.quantised, *self.assembled) if name is None else (name,)
        return any(not part.is_exact for one in names for part in self.quantised_parts(one))

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of a tensor in the files: those of all its parts if it is quantised."""
        if name in self.assembled:
            return self.assembled[name].nbytes
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
            pieces={names[name]: pieces for name, pieces in self.pieces.items()},
            renamed={short: self.renamed.get(name, name) for short, name in shorts.items()},
            quantised={names[name]: quantised for name, quantised in self.quantised.items()},
            assembled={names[name]: assembled for name, assembled in self.assembled.items()},
        )


def dequantising_note(path: Path, tensors: Iterable[QuantisedTensor]) -> list[str]:
    """Return a line on the tensors that are dequantised while a checkpoint is read, if there are any."""
    counts = Counter(tensor.format for tensor in tensors if not tensor.is_exact)
    if not counts:
        return []
    listed = "; ".join(f"{form} ({count:,} tensor{'' if count == 1 else 's'})" for form, count in counts.items())
    return [f"{path} is dequantised while it is read, to float32: {listed}. Its rounding errors are merged."]
