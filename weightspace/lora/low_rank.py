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


#: Ranks in the smaller side of a matrix, above which its leading singular vectors are found by subspace iteration.
_EXACT = 8

#: Vectors beyond the rank, and passes over the matrix and its transpose, of the subspace iteration.
_MORE, _PASSES = 16, 4


def nearest_factors(matrix: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return balanced ``A`` of ``(r, n)`` and ``B`` of ``(m, r)`` whose product is nearest to a matrix.

    Args:
        matrix: ``(m, n)``, in the dtype to compute in.
        rank: ``r``, clamped to the smaller side.
        seed: of the subspace iteration, which finds the vectors of large matrices.
    """
    kept = min(rank, *matrix.shape)
    if min(matrix.shape) > _EXACT * rank:
        left, values, right = _leading(matrix, min(kept + _MORE, *matrix.shape), seed)
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:kept].sqrt()
    return roots[:, None] * right[:kept], left[:, :kept] * roots


def _leading(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return about the leading singular triples; ``torch.svd_lowrank`` without its global random numbers."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis = torch.linalg.qr(matrix @ probe).Q
    for _ in range(_PASSES):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right
