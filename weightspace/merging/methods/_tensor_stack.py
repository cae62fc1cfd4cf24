"""A stack: what all models have under one name, read a chunk at a time, as often as a method needs it.

A method never sees a whole model, and an elementwise one never a whole tensor. Chunks have a fixed size, so that
sums, thresholds and random masks are the same from memory and from files, on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from weightspace.arithmetic.nonfinite import finite, is_finite
from weightspace.checkpoints.reader import StoredTensor
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._registry import CHUNK, Granularity


class TensorReader(Protocol):
    """One float tensor of one model, read by range of its elements in row-major order."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype in the file, or in memory."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D, in any float dtype; not to be modified."""
        ...


class InMemory:
    """A ``TensorReader`` of a tensor in memory. Complex numbers are pairs of real ones along a new axis."""

    def __init__(self, tensor: Tensor) -> None:
        plain = real(tensor.detach())
        self.dtype = plain.dtype
        self.shape = tuple(plain.shape)
        self._elements = plain.reshape(-1)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a view of the elements."""
        return self._elements[start:stop]


@dataclass(frozen=True)
class Chunk:
    """The same stretch of elements of every model, in the dtype to compute in, read to be used up.

    Attributes:
        models: along dim 0: ``(N, n)`` by granularity ``elements``; ``(N, rows, …)`` by granularity ``slices``,
            in which a vector is one row ``(1, n)``; whole tensors, ``(N, …)``, by granularity ``whole``. They may be
            overwritten.
        base: the base's, of the shape of one of them, or None.
        start: row-major index of the first element in the tensor.
    """

    models: Tensor
    base: Tensor | None
    start: int

    @property
    def tensors(self) -> list[Tensor]:
        """The models one by one."""
        return list(self.models)

    @property
    def origin(self) -> Tensor:
        """The base, where a method needs one."""
        if self.base is None:
            raise WeightspaceError("This method works on the difference from a base, but no base was given.")
        return self.base

    def deltas(self) -> list[Tensor]:
        """Return ``x_i − b``, one tensor a model, in the place of the models."""
        return list(torch.sub(self.models, self.origin, out=self.models))


#: The second step of a method: the merged elements of a chunk, in its shape and dtype.
Formula: TypeAlias = Callable[[Chunk], Tensor]


@dataclass(frozen=True)
class TensorStack:
    """The tensors of one name, of one shape.

    Attributes:
        name: the tensor's name.
        sources: one per model.
        base: the base's tensor, or None.
        labels: what the models are called in errors and in the seeds of their random masks, one a source.
        granularity: what a chunk is (see ``Chunk``).
        finite: refuse NaN and infinity when they are read. Else those that all tensors share, base included, are read
            as 0, so that sums over the tensor don't see them (``shared_nonfinite``).
        dtype: what the inputs are read and selected in: theirs, float32 at least.
        evidence: the statistics of data of each model, for methods that need them; None where a model has none
            for this tensor.
        layer: the tensor's layer in its stack of layers, counted from 0, and their number; None outside the layers.
        work: what sums and results are computed in, ``dtype`` if None.
        passes: whether each of the whole passes so far looked for NaN and infinity.
    """

    name: str
    sources: Sequence[TensorReader]
    base: TensorReader | None
    labels: Sequence[str]
    granularity: Granularity = "elements"
    finite: bool = True
    dtype: torch.dtype = torch.float32
    evidence: Sequence[TensorReader | None] = ()
    layer: tuple[int, int] | None = None
    work: torch.dtype | None = None
    passes: list[bool] = field(default_factory=list, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all of them have."""
        return self.sources[0].shape

    @property
    def numel(self) -> int:
        """Elements of one tensor."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of a chunk, the last one aside."""
        if self.granularity == "elements":
            return CHUNK
        if self.granularity == "whole" or len(self.shape) < 2:
            return max(1, self.numel)
        row = max(1, math.prod(self.shape[1:]))
        return row * max(1, CHUNK // row)

    def chunks(self, first: int = 0, dtype: torch.dtype | None = None) -> Iterator[Chunk]:
        """Read the tensors once, in order; each chunk takes the memory of the one before.

        A whole pass finds NaN and infinity; those after it don't look again.

        Args:
            first: where to begin: the start of a chunk.
            dtype: of the chunks, that of the stack if not given.
        """
        numel, span = self.numel, self.span
        room = self._room(min(span, numel), dtype or self.dtype)
        for start in range(first, numel, span):
            yield self._chunk(start, room[:, : numel - start])
        if not first:
            self.passes.append(self.finite)

    def read(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Chunk:
        """Read a range of elements, of whole slices if the granularity has them, in ``dtype`` or that of the stack."""
        return self._chunk(start, self._room(stop - start, dtype or self.dtype))

    def scattered(self, starts: Sequence[int], length: int) -> Chunk:
        """Read runs of ``length`` elements that begin at ``starts``, one after the other in a chunk of their own."""
        room = self._room(len(starts) * length, self.dtype)
        for source, row in zip(self._sources, room.view(len(room), len(starts), length), strict=True):
            for start, run in zip(starts, row, strict=True):
                run.copy_(source.read(start, start + length))
        return self._made(starts[0], room)

    def _room(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return memory for a chunk of ``count`` elements: one row per model, the base's below."""
        return torch.empty(len(self.sources) + (self.base is not None), count, dtype=dtype)

    def _chunk(self, start: int, room: Tensor) -> Chunk:
        """Read as many elements as ``room`` has columns, in its dtype."""
        stop = start + room.shape[1]
        for source, row in zip(self._sources, room, strict=True):
            if isinstance(source, StoredTensor) and source.dtype == row.dtype:  # no copy beside the one of the system
                source.read_into(row, start)
            else:
                row.copy_(source.read(start, stop))
        return self._made(start, room)

    def _made(self, start: int, room: Tensor) -> Chunk:
        """Return the chunk of the elements in ``room``, looked at where nobody has looked yet."""
        if not self.finite:
            _blank_shared(room)
        elif True not in self.passes and not is_finite(room):
            for label, row in zip((*self.labels, "the base"), room, strict=False):
                check_finite(row, self.name, label)
        tensors = room.view(len(room), *self._shape(room.shape[1]))
        count = len(self.sources)
        return Chunk(tensors[:count], None if self.base is None else tensors[count], start)

    def working_chunks(self, first: int = 0) -> Iterator[Chunk]:
        """Read the tensors, from the start of a chunk on, in the dtype that sums and results are computed in."""
        return self.chunks(first, dtype=self.work)

    def stored(self, start: int, stop: int) -> list[Tensor]:
        """Return the elements of a range as they are stored: of the models, and behind them of the base."""
        return [source.read(start, stop) for source in self._sources]

    def shared_nonfinite(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return where in a range all tensors, base included, hold the same NaN or infinity, and what they hold."""
        first = self._sources[0].read(start, stop)
        places = torch.empty(0, dtype=torch.int64) if is_finite(first) else (~finite(first)).nonzero()[:, 0]
        if not len(places):
            return places, first[places]
        rows = torch.stack([source.read(start, stop)[places].to(self.dtype) for source in self._sources])
        places = places[_shared(rows)]
        return places, first[places]

    @property
    def _sources(self) -> Sequence[TensorReader]:
        """The models' tensors, and the base's behind them."""
        return self.sources if self.base is None else (*self.sources, self.base)

    def _shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of a chunk of ``count`` elements."""
        if self.granularity == "elements":
            return (count,)
        if self.granularity == "whole":
            return self.shape
        return (1, count) if len(self.shape) < 2 else (-1, *self.shape[1:])


def _blank_shared(rows: Tensor) -> None:
    """Set to 0, in place, what is the same NaN or infinity in all rows."""
    if not is_finite(rows[0]):
        places = (~rows[0].isfinite()).nonzero()[:, 0]
        rows[:, places[_shared(rows[:, places])]] = 0.0


def _shared(rows: Tensor) -> Tensor:
    """Return which columns hold the same bits in all rows."""
    bits = rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32)
    return (bits == bits[0]).all(dim=0)


def real(tensor: Tensor) -> Tensor:
    """Return a view of a complex tensor as pairs of real numbers; any other tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check_finite(tensor: Tensor, name: str, holder: str) -> None:
    """Check that a tensor holds no NaN and no infinity.

    Raises:
        WeightspaceError: it does; the message names the tensor and who holds it.
    """
    if not is_finite(tensor):
        good = finite(tensor)
        bad = "NaN" if bool(tensor.isnan().any()) else "infinite"
        raise WeightspaceError(
            f"{name!r} of {holder} holds {bad} values (found in {int((~good).sum()):,} of the {tensor.numel():,} "
            f"elements looked at). Expected finite ones{_limit(tensor.dtype)}; allow_nonfinite (--allow-nonfinite) "
            "merges them all the same."
        )


def _limit(dtype: torch.dtype) -> str:
    """Return where a dtype ends whose numbers a merge easily leaves."""
    largest = torch.finfo(dtype).max
    return f", up to the {largest:g} at which {str(dtype).removeprefix('torch.')} ends" if largest < 1e6 else ""
