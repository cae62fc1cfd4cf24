"""Multiplication of ranges of a matrix's elements by the scales of their blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

#: Number of elements that are converted at a time, small enough for their copies to stay in the cache.
_PIECE = 2**16

#: The code of NaN in E4M3 without its sign; and the bit that its sign also gets when it is shifted.
_NAN, _SIGN = 0x7F, 0x4000


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
    for row, column, part in _rectangles(values, start, grid.columns):
        first, last = grid.block_row(row), grid.block_row(row + len(part) - 1) + 1
        width = grid.scale_columns
        own = float32(scales.read(first * width, last * width)).view(-1, width)
        if width > 1:
            own = own.repeat_interleave(grid.block_columns, dim=1)[:, column : column + part.shape[1]]
        if grid.block_rows == 1:
            part.mul_(own)
            continue
        at = row
        while at < row + len(part):
            end = min(grid.end(at), row + len(part))
            part[at - row : end - row].mul_(own[grid.block_row(at) - first])
            at = end
    return values


def _rectangles(values: Tensor, start: int, columns: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the parts of a range that are rectangles of the matrix: first row, first column, elements."""
    at, end = start, start + len(values)
    while at < end:
        row, column = divmod(at, columns)
        whole = 0 if column else (end - at) // columns
        count = whole * columns if whole else min(end, (row + 1) * columns) - at
        yield row, column, values[at - start : at - start + count].view(max(1, whole), -1)
        at += count


def float32(elements: Tensor) -> Tensor:
    """Return a float32 copy of 1-D elements of any dtype; torch converts E4M3 numbers one by one, which is slower."""
    import torch

    codes = elements.view(torch.int8) if elements.dtype == torch.float8_e4m3fn else None
    if codes is None or not len(codes) or int(codes.bitwise_and(_NAN).max()) == _NAN:
        return elements.to(torch.float32, copy=True)
    found = torch.empty(len(codes), dtype=torch.float32)
    bits = torch.empty(min(_PIECE, len(codes)), dtype=torch.int16)
    for start in range(0, len(codes), _PIECE):
        piece = found[start : start + _PIECE]
        # Shifted, exponent and mantissa are those of a float16 number with another bias: 2 ** −8 times the value.
        own = bits[: len(piece)].copy_(codes[start : start + _PIECE]).mul_(2**7).bitwise_and_(~_SIGN)
        piece.copy_(own.view(torch.float16)).mul_(2**8)
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
        return multiply(float32(self._values.read(start, stop)), start, self._grid, self._scales)
