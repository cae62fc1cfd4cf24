"""Multiplication of ranges of a matrix's elements by the scales of their blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

#: Number of elements that are converted at a time, small enough for their copies to stay in the cache.
_PIECE = 2**17

#: The code of NaN in E4M3 without its sign; the bit of the sign; and the bit that it also gets when it is shifted.
_NAN, _SIGN, _SHIFTED_SIGN = 0x7F, 0x80, 0x4000

#: E4M3 numbers read as float16 are smaller by this factor.
_REDUCED = 2.0**8


class Grid(NamedTuple):
    """The blocks of a stack of matrices that have a scale each, in row-major order.

    Attributes:
        rows, columns: shape of a matrix.
        block_rows, block_columns: shape of a block; the last ones may be smaller.
    """

    rows: int
    columns: int
    block_rows: int
    block_columns: int

    @property
    def scale_rows(self) -> int:
        """Number of blocks along the rows of a matrix."""
        return -(-self.rows // self.block_rows)

    @property
    def scale_columns(self) -> int:
        """Number of blocks along the columns."""
        return -(-self.columns // self.block_columns)

    def block_row(self, row: int) -> int:
        """Return the row of blocks of a row of the stack."""
        matrix, own = divmod(row, self.rows)
        return matrix * self.scale_rows + own // self.block_rows

    def end(self, row: int) -> int:
        """Return the first row of the stack after the block of a row."""
        matrix, own = divmod(row, self.rows)
        return matrix * self.rows + min(self.rows, (own // self.block_rows + 1) * self.block_rows)


def grid_of(shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, int]) -> Grid | None:
    """Return the blocks of a tensor by the shape of its scales, or None if the shapes don't fit.

    Args:
        shape: of the tensor; all axes but the last two are a stack of matrices.
        scales: shape of the scales: one per tensor; one per index of the first axes, such as a row or a matrix; or one
            per block of each matrix, where an axis with one scale is not divided, and an axis with one scale per index
            has blocks of size 1.
        block: size of the blocks along any other axis, for rows and columns.
    """
    leading = scales
    while leading and leading[-1] == 1:
        leading = leading[:-1]
    if math.prod(shape) == 0 or not shape:
        return None
    if not leading:
        matrix = math.prod(shape[:-1]), shape[-1]
        return Grid(*matrix, *matrix)
    if leading == shape[: len(leading)]:
        rest = math.prod(shape[len(leading) :])
        return Grid(math.prod(leading), rest, 1, rest)
    if len(shape) < 2 or len(scales) != len(shape) or scales[:-2] != shape[:-2]:
        return None
    sizes = [_block_size(*axis) for axis in zip(shape[-2:], scales[-2:], block, strict=True)]
    return Grid(*shape[-2:], *sizes) if all(sizes) else None


def _block_size(size: int, count: int, block: int) -> int:
    """Return the size of blocks along an axis: all of it, 1 or ``block``; 0 if ``count`` blocks are none of these."""
    if count == 1:
        return size
    if count == size:
        return 1
    return block if count == -(-size // block) else 0


def multiply(values: Tensor, start: int, grid: Grid, scales: RangeReader) -> Tensor:
    """Multiply a range of elements by the scales of their blocks in place, and return them.

    Args:
        values: the elements from ``start`` on, 1-D, float32, in memory that may be overwritten.
        start: index of the first one in the tensor.
        grid: the blocks.
        scales: their scales.
    """
    for place, shape, own in _scaled_parts(start, start + len(values), grid, scales):
        values[place].view(shape).mul_(own)
    return values


def _scaled_parts(
    start: int, stop: int, grid: Grid, scales: RangeReader
) -> Iterator[tuple[slice, tuple[int, int], Tensor]]:
    """Yield the parts of a range that are rectangles of the matrix, small enough to stay in the cache.

    Yields:
        Place in the range, shape, and scales that are broadcast to it.
    """
    for row, column, (rows, columns) in _rectangles(start, stop, grid.columns):
        first, last = grid.block_row(row), grid.block_row(row + rows - 1) + 1
        width = grid.scale_columns
        own = float32(scales.read(first * width, last * width)).view(-1, width)
        if width > 1:
            own = own.repeat_interleave(grid.block_columns, dim=1)[:, column : column + columns]
        at = row
        while at < row + rows:
            end = min(row + rows, at + max(1, _PIECE // columns), grid.end(at) if grid.block_rows > 1 else row + rows)
            place = grid.block_row(at) - first
            begin = at * grid.columns + column - start
            part = own[place : place + (end - at if grid.block_rows == 1 else 1)]
            yield slice(begin, begin + (end - at) * columns), (end - at, columns), part
            at = end


def _rectangles(start: int, stop: int, columns: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield the parts of a range that are rectangles of the matrix: first row, first column, shape."""
    at = start
    while at < stop:
        row, column = divmod(at, columns)
        whole = 0 if column else (stop - at) // columns
        shape = (whole, columns) if whole else (1, min(stop, (row + 1) * columns) - at)
        yield row, column, shape
        at += math.prod(shape)


def float32(elements: Tensor) -> Tensor:
    """Return a float32 copy of 1-D elements of any dtype; torch converts E4M3 numbers one by one, which is slower."""
    import torch

    if not _are_plain_e4m3(elements):
        return elements.to(torch.float32, copy=True)
    found = torch.empty(len(elements), dtype=torch.float32)
    room = torch.empty(min(_PIECE, len(elements)), dtype=torch.int16)
    for start in range(0, len(elements), _PIECE):
        _reduced(elements[start : start + _PIECE], found[start : start + _PIECE], room).mul_(_REDUCED)
    return found


def _are_plain_e4m3(elements: Tensor) -> bool:
    """Return whether elements are E4M3 numbers without NaN."""
    import torch

    if elements.dtype != torch.float8_e4m3fn or not len(elements):
        return False
    # The codes of NaN are the largest of signed and of unsigned ones.
    return int(elements.view(torch.int8).max()) != _NAN and int(elements.view(torch.uint8).max()) != _NAN | _SIGN


def _reduced(elements: Tensor, out: Tensor, room: Tensor) -> Tensor:
    """Convert E4M3 numbers other than NaN to float32 in ``out``, divided by ``_REDUCED``, and return it.

    Args:
        elements: the numbers, 1-D.
        out: of the same length.
        room: memory to work in, int16, at least as long.
    """
    import torch

    # Shifted, exponent and mantissa are those of a float16 number with another bias.
    bits = room[: len(elements)].copy_(elements.view(torch.int8)).mul_(2**7).bitwise_and_(~_SHIFTED_SIGN)
    return out.copy_(bits.view(torch.float16))


def _scaled_e4m3(elements: Tensor, start: int, grid: Grid, scales: RangeReader) -> Tensor:
    """Return E4M3 numbers other than NaN times the scales of their blocks, in float32; arguments as in ``multiply``."""
    import torch

    found = torch.empty(len(elements), dtype=torch.float32)
    room = torch.empty(0, dtype=torch.int16)
    for place, shape, own in _scaled_parts(start, start + len(elements), grid, scales):
        if len(room) < math.prod(shape):
            room = torch.empty(math.prod(shape), dtype=torch.int16)
        values = _reduced(elements[place], found[place], room).view(shape)
        enlarged = own * _REDUCED
        if enlarged.isfinite().all():  # the same products, rounded once
            values.mul_(enlarged)
        else:
            values.mul_(_REDUCED).mul_(own)
    return found


def powers_of_two(codes: Tensor) -> Tensor:
    """Return E8M0 numbers, as such or as bytes, in float32: powers of two with biased exponents; code 255 is NaN."""
    import torch

    return codes.view(torch.float8_e8m0fnu).to(torch.float32)


class PowersOfTwo:
    """E8M0 numbers, as such or as bytes, read by ranges of elements, in float32."""

    def __init__(self, codes: RangeReader) -> None:
        import torch

        self.dtype, self.shape = torch.float32, codes.shape
        self._codes = codes

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D."""
        return powers_of_two(self._codes.read(start, stop))


class ScaledTensor:
    """A tensor of narrow numbers times the scales of their blocks, read by ranges of elements, in float32."""

    def __init__(self, values: RangeReader, scales: RangeReader, shape: tuple[int, ...], grid: Grid) -> None:
        import torch

        self.dtype = torch.float32
        self.shape = shape
        self._values, self._scales, self._grid = values, scales, grid

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D."""
        values = self._values.read(start, stop)
        if _are_plain_e4m3(values):
            return _scaled_e4m3(values, start, self._grid, self._scales)
        return multiply(float32(values), start, self._grid, self._scales)
