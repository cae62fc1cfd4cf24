"""Tensor stacks: the tensors of one name from all models, read in chunks, as often as a method needs.

A method never sees a whole model, and an elementwise one never a whole tensor. Chunks have a fixed size, so sums,
thresholds and random masks are the same from memory and from files, on any number of threads.
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
    """One float tensor of one model, read by ranges of its elements in row-major order."""

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
    """The same range of elements from every model, in the dtype to compute in, in memory that may be overwritten.

    Attributes:
        models: stacked along dim 0: ``(N, n)`` for granularity ``elements``; ``(N, rows, …)`` for granularity
            ``slices``, in which a vector is one row ``(1, n)``; whole tensors, ``(N, …)``, for granularity ``whole``.
        base: the base's elements, with the shape of one model's, or None.
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
        """The base, for methods that need one."""
        if self.base is None:
            raise WeightspaceError("This method works on the difference from a base, but no base was given.")
        return self.base

    def deltas(self) -> list[Tensor]:
        """Return ``x_i − b``, one tensor per model, in the memory of the models."""
        return list(torch.sub(self.models, self.origin, out=self.models))


#: The second step of a method: returns the merged elements of a chunk, in its shape and dtype.
Formula: TypeAlias = Callable[[Chunk], Tensor]


@dataclass(frozen=True)
class TensorStack:
    """The tensors of one name, of one shape.

    Attributes:
        name: name of the tensor.
        sources: one per model.
        base: the base's tensor, or None.
        labels: names of the models in errors and in the seeds of their random masks, one per source.
        granularity: the unit of a chunk (see ``Chunk``).
        finite: whether to refuse NaN and infinity when they are read. Otherwise, those shared by all tensors including
            the base are read as 0, so that they don't affect sums over the tensor (``shared_nonfinite``).
        dtype: the dtype to read inputs and select elements in: theirs, at least float32.
        evidence: the data statistics of each model, for methods that need them; None if a model has none for this
            tensor.
        layer: the tensor's layer in its stack of layers, counted from 0, and their number; None outside the layers.
        work: the dtype to compute sums and results in, ``dtype`` if None.
        device: where methods decompose and multiply matrices; chunks are on the CPU, and so are results.
        passes: for each full pass so far, whether it checked for NaN and infinity.
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
    device: str = "cpu"
    passes: list[bool] = field(default_factory=list, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The common shape of the tensors."""
        return self.sources[0].shape

    @property
    def numel(self) -> int:
        """Number of elements in one tensor."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Number of elements in a chunk, except the last one."""
        if self.granularity == "elements":
            return CHUNK
        if self.granularity == "whole" or len(self.shape) < 2:
            return max(1, self.numel)
        row = max(1, math.prod(self.shape[1:]))
        return row * max(1, CHUNK // row)

    def chunks(self, first: int = 0, dtype: torch.dtype | None = None) -> Iterator[Chunk]:
        """Read the tensors once, in order; each chunk reuses the memory of the previous one.

        The first full pass detects NaN and infinity; later ones don't check again.

        Args:
            first: start of the first chunk to read.
            dtype: dtype of the chunks, by default that of the stack.
        """
        numel, span = self.numel, self.span
        room = self._room(min(span, numel), dtype or self.dtype)
        for start in range(first, numel, span):
            yield self._chunk(start, room[:, : numel - start])
        if not first:
            self.passes.append(self.finite)

    def read(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Chunk:
        """Read a range of elements, of whole slices if the granularity requires it, in ``dtype`` or the stack's."""
        return self._chunk(start, self._room(stop - start, dtype or self.dtype))

    def scattered(self, starts: Sequence[int], length: int) -> Chunk:
        """Read runs of ``length`` elements that begin at ``starts`` into one chunk."""
        room = self._room(len(starts) * length, self.dtype)
        ends = torch.arange(1, len(starts) + 1) * length
        for source, row in zip(self._sources, room, strict=True):
            if isinstance(source, StoredTensor):
                stored = row if source.dtype == row.dtype else torch.empty(len(row), dtype=source.dtype)
                source.read_runs_into(stored, ends - length, ends, torch.tensor(starts))
                row.copy_(stored)
                continue
            for start, run in zip(starts, row.view(-1, length), strict=True):
                run.copy_(source.read(start, start + length))
        return self._made(starts[0], room)

    def _room(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return memory for a chunk of ``count`` elements: one row per model, followed by the base's."""
        return torch.empty(len(self.sources) + (self.base is not None), count, dtype=dtype)

    def _chunk(self, start: int, room: Tensor) -> Chunk:
        """Read as many elements as ``room`` has columns, in its dtype."""
        stop = start + room.shape[1]
        for source, row in zip(self._sources, room, strict=True):
            if isinstance(source, StoredTensor) and source.dtype == row.dtype:  # no copy besides the system's
                source.read_into(row, start)
            else:
                row.copy_(source.read(start, stop))
        return self._made(start, room)

    def _made(self, start: int, room: Tensor) -> Chunk:
        """Return the chunk of the elements in ``room``, after checking it if it wasn't checked before."""
        if not self.finite:
            _blank_shared(room)
        elif True not in self.passes and not is_finite(room):
            for label, row in zip((*self.labels, "the base"), room, strict=False):
                check_finite(row, self.name, label)
        tensors = room.view(len(room), *self._shape(room.shape[1]))
        count = len(self.sources)
        return Chunk(tensors[:count], None if self.base is None else tensors[count], start)

    def working_chunks(self, first: int = 0) -> Iterator[Chunk]:
        """Read the tensors once, from the start of a chunk on, in the dtype for computing sums and results."""
        return self.chunks(first, dtype=self.work)

    def stored(self, start: int, stop: int) -> list[Tensor]:
        """Return the elements of a range as they are stored: those of the models, then those of the base."""
        return [source.read(start, stop) for source in self._sources]

    def shared_nonfinite(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return where in a range all tensors, base included, have the same NaN or infinity, and its values."""
        first = self._sources[0].read(start, stop)
        places = torch.empty(0, dtype=torch.int64) if is_finite(first) else (~finite(first)).nonzero()[:, 0]
        if not len(places):
            return places, first[places]
        rows = torch.stack([source.read(start, stop)[places].to(self.dtype) for source in self._sources])
        places = places[_shared(rows)]
        return places, first[places]

    @property
    def _sources(self) -> Sequence[TensorReader]:
        """The models' tensors, followed by the base's."""
        return self.sources if self.base is None else (*self.sources, self.base)

    def _shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of a chunk of ``count`` elements."""
        if self.granularity == "elements":
            return (count,)
        if self.granularity == "whole":
            return self.shape
        return (1, count) if len(self.shape) < 2 else (-1, *self.shape[1:])


def _blank_shared(rows: Tensor) -> None:
    """Set to 0 in place where all rows have the same NaN or infinity."""
    if not is_finite(rows[0]):
        places = (~rows[0].isfinite()).nonzero()[:, 0]
        rows[:, places[_shared(rows[:, places])]] = 0.0


def _shared(rows: Tensor) -> Tensor:
    """Return the columns with identical bits in all rows."""
    bits = rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32)
    return (bits == bits[0]).all(dim=0)


def real(tensor: Tensor) -> Tensor:
    """Return a view of a complex tensor as pairs of real numbers; other tensors are returned unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check_finite(tensor: Tensor, name: str, holder: str) -> None:
    """Check that a tensor contains neither NaN nor infinity.

    Raises:
        WeightspaceError: it does; the message names the tensor and its owner.
    """
    if not is_finite(tensor):
        good = finite(tensor)
        bad = "NaN" if bool(tensor.isnan().any()) else "infinite"
        raise WeightspaceError(
            f"{name!r} of {holder} holds {bad} values (found in {int((~good).sum()):,} of the {tensor.numel():,} "
            f"elements checked). Expected finite values{_limit(tensor.dtype)}; allow_nonfinite (--allow-nonfinite) "
            "merges them anyway."
        )


def _limit(dtype: torch.dtype) -> str:
    """Return a note on the limit of a dtype that a merge can easily exceed."""
    largest = torch.finfo(dtype).max
    return f", up to the {largest:g} at which {str(dtype).removeprefix('torch.')} ends" if largest < 1e6 else ""
