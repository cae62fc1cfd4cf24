"""Running sums of tensors and their means: exact, independent of order, and rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from weightspace.arithmetic.double_word import quotient, rounded_once, two_sum

#: Number of elements processed at a time, to keep intermediate results small: 1 MiB.
_PIECE = 2**17

#: Scaling factor for numbers whose sums would overflow.
_SMALLER = 2.0**-128


@dataclass
class ExactSum:
    """The sum of float or complex tensors of one shape.

    Attributes:
        high: float64, or complex128.
        low: accumulated rounding errors, None if there are none.
        scale: factor that the tensors were multiplied by.
    """

    high: Tensor
    low: Tensor | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, tensor: Tensor) -> ExactSum:
        """Start with a copy of a tensor."""
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        return cls(tensor.detach().to(wide, copy=True, memory_format=torch.contiguous_format))

    def copy(self) -> ExactSum:
        """Return a copy of the sum."""
        return ExactSum(self.high.clone(), None if self.low is None else self.low.clone(), self.scale)

    def add(self, tensor: Tensor) -> None:
        """Add a tensor."""
        self._make_room(tensor)
        for start, high, low, total, lost in self._with(tensor):
            high.copy_(total)
            if low is None and bool(lost.count_nonzero()):
                self.low = torch.zeros_like(self.high)
            if self.low is not None:
                _flat(self.low)[start : start + len(lost)] += lost

    def mean(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return the sum over ``count`` in a new tensor, rounded once."""
        out = torch.empty_like(self.high, dtype=dtype)
        for start, high, low in self._pieces():
            into = _flat(out)[start : start + len(high)]
            _divide(high, torch.zeros_like(high) if low is None else low, count, self.scale, into)
        return out

    def mean_with(self, tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """Return the mean of this sum and a tensor, which isn't added to it."""
        self._make_room(tensor)
        out = torch.empty_like(self.high, dtype=dtype)
        for start, _, low, total, lost in self._with(tensor):
            into = _flat(out)[start : start + len(total)]
            _divide(total, lost if low is None else lost + low, count, self.scale, into)
        return out

    def _make_room(self, tensor: Tensor) -> None:
        """Scale the sum if adding a tensor would overflow."""
        if self.scale == 1 and tensor.dtype in (torch.float64, torch.complex128) and tensor.numel():
            sizes = (_flat(part).abs().nan_to_num_(posinf=0.0).max() for part in (self.high, tensor.detach()))
            if float(sum(sizes)) == math.inf:
                self.scale = _SMALLER
                self.high *= self.scale
                if self.low is not None:
                    self.low *= self.scale

    def _pieces(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield index and views of consecutive ranges of real numbers."""
        high = _flat(self.high)
        for start in range(0, len(high), _PIECE):
            stop = start + _PIECE
            yield start, high[start:stop], None if self.low is None else _flat(self.low)[start:stop]

    def _with(self, tensor: Tensor) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor, Tensor]]:
        """Yield the same, with the sum including the elements of a tensor, and its rounding error."""
        new = _flat(tensor.detach())
        for start, high, low in self._pieces():
            total, lost = two_sum(high, new[start : start + len(high)].to(torch.float64) * self.scale)
            yield start, high, low, total, lost.masked_fill_(~total.isfinite(), 0.0)


def _divide(high: Tensor, low: Tensor, count: int, scale: float, out: Tensor) -> None:
    """Compute a sum over ``count · scale`` into ``out``, rounded once."""
    plain = high / count
    if out.dtype not in (torch.float32, torch.float64) or bool(low.count_nonzero()):
        first, rest = quotient((high.clone(), low.clone()), Fraction(count))
        exact = rounded_once((first / scale, rest / scale), out.dtype)
        finite = plain.isfinite() & (plain != 0)
        out.copy_(torch.where(finite, exact, (plain / scale).to(out.dtype)))
    else:
        out.copy_(plain.div_(scale))


def _flat(tensor: Tensor) -> Tensor:
    """Return the real numbers of a tensor, 1-D."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)
