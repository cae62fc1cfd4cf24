"""Reading a range of a tensor from parts of others, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoints.metadata import AssembledTensor, CopiedPiece

#: Elements of a block of a transposed or interleaved tensor, which is kept for the next range.
BLOCK = 2**20

#: A part is read at once, with what lies between its elements, if that is at most so many times as much.
SPARSE = 4


class AssembledReader:
    """A tensor that is assembled from others, read by range of elements.

    Args:
        assembled: its pieces.
        shape: its shape.
        dtype: its dtype.
        readers: name -> reader of the other tensors.
    """

    def __init__(
        self, assembled: AssembledTensor, shape: tuple[int, ...], dtype: torch.dtype, readers: Mapping[str, Any]
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._pieces, self._readers = assembled.pieces, readers
        self._numel = math.prod(shape)
        self._is_scattered = assembled.is_scattered
        self._kept: tuple[int, Tensor] = (0, torch.empty(0, dtype=dtype))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D.

        Raises:
            CheckpointError: a file has become shorter, or cannot be read.
        """
        if not self._is_scattered or stop - start >= BLOCK:
            return self._read(start, stop)
        first, block = self._kept
        if not first <= start <= stop <= first + len(block):
            block = self._read(start, min(self._numel, start + BLOCK))
            first, self._kept = start, (start, block)
        return block[start - first : stop - first].clone()

    def _read(self, start: int, stop: int) -> Tensor:
        elements = torch.empty(stop - start, dtype=self.dtype)
        for piece in self._pieces:
            for begin, shape in boxes(piece, start, stop):
                source = piece.source_offset + _dot(begin, piece.source_strides)
                offset = piece.offset + _dot(begin, piece.strides) - start
                target = elements.as_strided(shape, piece.strides, offset)
                _fill(target, self._readers[piece.source], source, piece.source_strides)
        return elements


def boxes(piece: CopiedPiece, start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the boxes of a piece whose elements lie in a range of the tensor: first index and shape.

    Args:
        piece: the piece.
        start: first element of the range.
        stop: end of the range.
    """
    if 0 in piece.shape:
        return
    order = sorted(range(len(piece.shape)), key=lambda dim: (-piece.strides[dim], -piece.shape[dim]))
    ordered = [(piece.shape[dim], piece.strides[dim]) for dim in order]
    for found in _boxes(ordered, start - piece.offset, stop - piece.offset):
        by_dim = dict(zip(order, found, strict=True))
        dims = range(len(order))
        yield tuple(by_dim[dim][0] for dim in dims), tuple(by_dim[dim][1] for dim in dims)


def _boxes(dims: Sequence[tuple[int, int]], low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the boxes of elements at positions from ``low`` up to ``high``: start and length along each dimension.

    Args:
        dims: length and stride of each dimension, strides descending: an element comes before another one if its index
            does.
        low: first position.
        high: end of the positions.
    """
    extent = 1 + sum((length - 1) * stride for length, stride in dims)
    if low >= extent or high <= 0:
        return
    if low <= 0 and high >= extent:
        yield [(0, length) for length, _ in dims]
        return
    (length, stride), inner = dims[0], dims[1:]
    width = 1 + sum((other - 1) * step for other, step in inner)
    first = max(0, -(-low // stride))  # the first index that lies in the range as a whole
    last = min(length, (high - width) // stride + 1) if high >= width else 0
    partial = {index for index in (first - 1, last) if 0 <= index < length and not first <= index < last}
    for index in sorted(partial):
        for box in _boxes(inner, low - index * stride, high - index * stride):
            yield [(index, 1), *box]
    if first < last:
        yield [(first, last - first), *((0, other) for other, _ in inner)]


def _fill(target: Tensor, reader: Any, offset: int, strides: Sequence[int]) -> None:
    """Copy elements of another tensor, at an offset and with strides, into a view.

    They are read at once if they lie close together, and otherwise along the dimension with the largest stride.
    """
    span = 1 + sum((length - 1) * stride for length, stride in zip(target.shape, strides, strict=True))
    if span <= SPARSE * target.numel() or target.numel() == 1:
        target.copy_(reader.read(offset, offset + span).as_strided(target.shape, tuple(strides)))
        return
    lengths = [length if length > 1 else 0 for length in target.shape]
    dim = max(range(len(strides)), key=lambda one: strides[one] if lengths[one] else -1)
    for index in range(target.shape[dim]):
        _fill(target.select(dim, index), reader, offset + index * strides[dim], [*strides[:dim], *strides[dim + 1 :]])


def _dot(index: Sequence[int], strides: Sequence[int]) -> int:
    return sum(one * stride for one, stride in zip(index, strides, strict=True))
