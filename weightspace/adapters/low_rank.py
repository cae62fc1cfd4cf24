"""A weight with a LoRA adapter on top, read a range at a time: ``W + scale · B A``, never whole.

The product is made in blocks of rows that don't depend on the range asked for, and so neither do its bits. They do
depend on the number of torch threads, by which BLAS chooses its kernels: ``torch_threads(1)`` holds it at one.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Elements of a block of rows, one row at least.
_BLOCK = 2**14


class Flat(Protocol):
    """A float tensor that is read by range of its elements in row-major order."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D; not to be modified."""
        ...


class Adapted:
    """The weight and its change, in float32 at least, so that a merge rounds once."""

    def __init__(self, base: Flat, a: Tensor, b: Tensor, scale: float, *, transposed: bool = False) -> None:
        """Put factors on top of a weight.

        Args:
            base: the weight, 2-D or of a convolution.
            a: ``(rank, in, *kernel)``.
            b: ``(out, rank, 1…)``.
            scale: what ``B A`` is multiplied by.
            transposed: the weight is ``(in, out)``.
        """
        self.shape = base.shape
        self.dtype = wide_dtype(base.dtype, a.dtype, b.dtype)
        left, right = matrices(a, b)
        if transposed:
            left, right = right.T, left.T
        self._base = base
        self._left = left.to(torch.float64).mul(scale).to(self.dtype)
        self._right = right.contiguous().to(self.dtype, copy=True)  # aligned, as tensors of files are not
        self._width = max(1, right.shape[1])
        self._rows = max(1, _BLOCK // self._width)

    def read(self, start: int, stop: int) -> Tensor:
        """Return new elements from ``start`` up to ``stop``, with the same bits in every range that holds them."""
        values = self._base.read(start, stop).to(self.dtype, copy=True)
        span = self._rows * self._width
        for first in range(start - start % span, stop, span):
            low, high = max(start, first), min(stop, first + span)
            row = first // self._width
            block = (self._left[row : row + self._rows] @ self._right).view(-1)
            values[low - start : high - start].add_(block[low - first : high - first])
        return values


class Scaled:
    """A tensor times a number, in float32 at least."""

    def __init__(self, base: Flat, factor: float) -> None:
        """Multiply a tensor.

        Args:
            base: the tensor.
            factor: what it is multiplied by.
        """
        self.shape = base.shape
        self.dtype = wide_dtype(base.dtype)
        self._base = base
        self._factor = factor

    def read(self, start: int, stop: int) -> Tensor:
        """Return new elements from ``start`` up to ``stop``."""
        return self._base.read(start, stop).to(torch.float64).mul(self._factor).to(self.dtype)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 if there is one, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def filled_up(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``A`` of ``(r, in)`` and ``B`` of ``(out, r)`` with zeros up to a rank."""
    return pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - len(a)))


def matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors as matrices: ``B`` of ``(out, rank)`` and ``A`` of ``(rank, in · kernel)``."""
    return b.reshape(b.shape[:2]), a.reshape(a.shape[0], math.prod(a.shape[1:]))
