"""Tensors decoded in panels of consecutive rows, the last of which is kept for the next read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

#: Elements per panel, unless a row or a step has more; and bytes that decoding takes per element.
PANEL, _COPIES = 2**19, 20


class PanelReader:
    """A stack of matrices decoded in panels, read by ranges of elements, in float32.

    Args:
        shape: shape of the tensor.
        rows: rows of a matrix, in the decoder's view.
        columns: elements of a row.
        step: panels begin at multiples of this many rows of a matrix.
        decode: returns rows ``first:last`` of the stack, which lie in one matrix, of shape ``(last − first, columns)``.
    """

    def __init__(
        self, shape: tuple[int, ...], rows: int, columns: int, step: int, decode: Callable[[int, int], Tensor]
    ) -> None:
        import torch

        self.dtype = torch.float32
        self.shape = shape
        self._rows, self._columns, self._decode = rows, columns, decode
        self._height = panel_height(columns, step)
        self._first, self._panel = 0, torch.empty(0)

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D, not to be modified."""
        import torch

        parts = []
        at = start
        while at < stop:
            if not self._first <= at < self._first + len(self._panel):
                self._load(at // self._columns)
            parts.append(self._panel[at - self._first : stop - self._first])
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def _load(self, row: int) -> None:
        """Decode the panel of a row of the stack."""
        matrix, own = divmod(row, self._rows)
        first = own - own % self._height
        start, end = (matrix * self._rows + at for at in (first, min(first + self._height, self._rows)))
        self._panel = self._decode(start, end).reshape(-1)
        self._first = start * self._columns


def panel_height(columns: int, step: int) -> int:
    """Return the number of rows of a panel."""
    return step * max(1, PANEL // max(1, step * columns))


def panel_bytes(shape: tuple[int, ...], columns: int, step: int) -> int:
    """Return the bytes that decoding a panel takes, including the panel itself."""
    return _COPIES * min(math.prod(shape), panel_height(columns, step) * columns)


def read_columns(part: RangeReader, first: int, rows: int, width: int, start: int, stop: int) -> Tensor:
    """Return columns ``start:stop`` of some consecutive rows of a stored matrix.

    Args:
        part: the matrix, row by row.
        first: index of the first row.
        rows: number of rows.
        width: elements of a row.
        start: first column.
        stop: column after the last one.
    """
    import torch

    from weightspace.checkpoints.reader import StoredTensor

    if (start, stop) == (0, width):
        return part.read(first * width, (first + rows) * width).view(rows, width)
    if not isinstance(part, StoredTensor):
        return part.read(first * width, (first + rows) * width).view(rows, width)[:, start:stop]
    found = torch.empty(rows, stop - start, dtype=part.dtype)
    starts = torch.arange(rows) * (stop - start)
    part.read_runs_into(found, starts, starts + (stop - start), (torch.arange(rows) + first) * width + start)
    return found
