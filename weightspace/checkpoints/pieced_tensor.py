"""Reading of tensors that are stored in several pieces, by ranges of elements.

A piece is a box of the tensor. In row-major order its elements are runs of equal length: whole rows are one run, and
columns are one run per row.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.metadata import Piece, TensorInfo
from weightspace.checkpoints.open_files import OpenFiles

#: Maximum number of runs that are located at a time.
_RUNS = 2**16


class PiecedTensor:
    """A tensor in several files or places, read by range of elements. Complex numbers are pairs along a new axis.

    Args:
        files: open files.
        pieces: its pieces, which cover it.
        info: dtype and shape.
    """

    def __init__(self, files: OpenFiles, pieces: Sequence[Piece], info: TensorInfo) -> None:
        dtype = DTYPES[info.dtype]
        self.dtype = dtype.to_real() if dtype.is_complex else dtype
        self.shape = (*info.shape, 2) if dtype.is_complex else info.shape
        parts = 2 if dtype.is_complex else 1
        self._files = files
        self._boxes = [_Box(piece, info.shape, parts) for piece in pieces]

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of the elements from ``start`` up to ``stop``, 1-D.

        Raises:
            CheckpointError: a file has become shorter, or cannot be read.
        """
        elements = torch.empty(stop - start, dtype=self.dtype)
        for box in self._boxes:
            box.read_into(elements, start, self._files)
        return elements


class _Box:
    """A piece as runs of equal length in the row-major order of its tensor.

    Args:
        piece: the piece.
        shape: shape of the tensor.
        parts: stored numbers per element, 2 for complex ones.
    """

    def __init__(self, piece: Piece, shape: tuple[int, ...], parts: int) -> None:
        self.place = piece.place
        whole = shape if len(piece.starts) == len(shape) else (math.prod(shape),)
        whole, starts, sizes = (*whole, parts), (*piece.starts, 0), (*piece.shape, parts)
        strides = [*accumulate(reversed(whole[1:]), lambda step, size: step * size, initial=1)][::-1]
        axis = len(whole) - 1
        while axis > 0 and sizes[axis] == whole[axis]:
            axis -= 1
        self.length = sizes[axis] * strides[axis]
        self.first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
        self.sizes, self.strides = sizes[:axis], strides[:axis]
        self.count = math.prod(self.sizes)

    def position(self, run: int) -> int:
        """Return the index in the tensor of a run's first number."""
        position = self.first
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            run, index = divmod(run, size)
            position += index * stride
        return position

    def positions(self, first: int, end: int) -> Tensor:
        """Return the positions of a range of runs, int64."""
        runs = torch.arange(first, end)
        positions = torch.full_like(runs, self.first)
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            positions += runs % size * stride
            runs = runs.div(size, rounding_mode="floor")
        return positions

    def read_into(self, elements: Tensor, start: int, files: OpenFiles) -> None:
        """Fill the part of a contiguous 1-D tensor that lies in the piece; its first number has the index ``start``."""
        stop, runs, size = start + len(elements), range(self.count), elements.element_size()
        last = bisect_left(runs, stop, key=self.position)
        first = max(0, bisect_right(runs, start - self.length, key=self.position))
        for begin in range(first, last, _RUNS):
            end = min(begin + _RUNS, last)
            positions = self.positions(begin, end)
            starts = positions.clamp(min=start)
            ends = (positions + self.length).clamp(max=stop)
            sources = torch.arange(begin, end) * self.length + starts - positions
            places = (sources * size + self.place.start).tolist()
            file = files(self.place.file)
            file.read_runs_into(elements, ((starts - start) * size).tolist(), ((ends - start) * size).tolist(), places)
