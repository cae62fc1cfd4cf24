"""A weight with a LoRA adapter applied, read one range at a time: ``W + scale · B A``, never as a whole.

The product is computed in blocks of rows that don't depend on the requested range, so neither do its bits. They depend
on the number of torch threads, by which BLAS selects its kernels: ``torch_threads(1)`` fixes it at one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from weightspace.checkpoints.reader import RangeReader

#: Elements in a block of rows; a block has at least one row.
_BLOCK = 2**14


class Change(Protocol):
    """What an adapter adds to a weight, computed by rows of the weight's matrix ``(rows, width)``."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    @property
    def width(self) -> int:
        """The number of columns."""
        ...

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``, fewer at the end."""
        ...


class LowRank:
    """The change ``scale · B A``."""

    def __init__(
        self, a: Tensor, b: Tensor, scale: float, *, transposed: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Take factors.

        Args:
            a: ``(rank, in, *kernel)``.
            b: ``(out, rank, 1…)``.
            scale: factor of ``B A``.
            transposed: the change is ``(B A)ᵀ``.
            dtype: dtype to compute in; by default float32, or float64 if a factor has it.
        """
        self.dtype = dtype or wide_dtype(a.dtype, b.dtype)
        left, right = matrices(a, b)
        if transposed:
            left, right = right.T, left.T
        self._left = left.to(torch.float64).mul(scale).to(self.dtype)
        self._right = right.contiguous().to(self.dtype, copy=True)  # aligned, unlike tensors mapped from files
        self.width = right.shape[1]

    def rows(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` up to ``last``, fewer at the end."""
        return self._left[first:last] @ self._right


class Changed:
    """A weight with a change added, in at least float32, so that a merge rounds only once."""

    def __init__(self, base: RangeReader, change: Change) -> None:
        """Add a change to a weight.

        Args:
            base: the weight.
            change: the change, with as many elements.
        """
        self.shape = base.shape
        self.dtype = wide_dtype(base.dtype, change.dtype)
        self._base = base
        self._change = change
        self._width = max(1, change.width)
        self._rows = max(1, _BLOCK // self._width)

    def read(self, start: int, stop: int) -> Tensor:
        """Return new elements from ``start`` up to ``stop``, with the same bits in every range that contains them."""
        values = self._base.read(start, stop).to(self.dtype, copy=True)
        span = self._rows * self._width
        for first in range(start - start % span, stop, span):
            low, high = max(start, first), min(stop, first + span)
            row = first // self._width
            block = self._change.rows(row, row + self._rows).reshape(-1)
            values[low - start : high - start].add_(block[low - first : high - first])
        return values


class Adapted(Changed):
    """A weight with factors applied."""

    def __init__(self, base: RangeReader, a: Tensor, b: Tensor, scale: float, *, transposed: bool = False) -> None:
        """Apply factors to a weight.

        Args:
            base: the weight, 2-D or of a convolution.
            a: ``(rank, in, *kernel)``.
            b: ``(out, rank, 1…)``.
            scale: factor of ``B A``.
            transposed: the weight is ``(in, out)``.
        """
        dtype = wide_dtype(base.dtype, a.dtype, b.dtype)
        super().__init__(base, LowRank(a, b, scale, transposed=transposed, dtype=dtype))


class Scaled:
    """A tensor times a number, in at least float32."""

    def __init__(self, base: RangeReader, factor: float) -> None:
        """Multiply a tensor.

        Args:
            base: the tensor.
            factor: the number.
        """
        self.shape = base.shape
        self.dtype = wide_dtype(base.dtype)
        self._base = base
        self._factor = factor

    def read(self, start: int, stop: int) -> Tensor:
        """Return new elements from ``start`` up to ``stop``."""
        return self._base.read(start, stop).to(torch.float64).mul(self._factor).to(self.dtype)


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 if any dtype is, otherwise float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def filled_up(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Pad ``A`` of ``(r, in)`` and ``B`` of ``(out, r)`` with zeros to a rank."""
    return pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - len(a)))


def matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors as matrices: ``B`` of ``(out, rank)`` and ``A`` of ``(rank, in · kernel)``."""
    return b.reshape(b.shape[:2]), a.reshape(a.shape[0], math.prod(a.shape[1:]))


#: Ratio of a matrix's smaller side to the rank above which subspace iteration is used.
_EXACT = 8

#: Number of extra vectors, and of passes over the matrix and its transpose, in the subspace iteration.
_MORE, _PASSES = 16, 4


def nearest_factors(matrix: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return balanced ``A`` of ``(r, n)`` and ``B`` of ``(m, r)`` whose product best approximates a matrix.

    Args:
        matrix: ``(m, n)``, in the dtype to compute in.
        rank: ``r``, clamped to the smaller side.
        seed: seed of the subspace iteration, used for large matrices.
    """
    kept = min(rank, *matrix.shape)
    if min(matrix.shape) > _EXACT * rank:
        left, values, right = _leading(matrix, min(kept + _MORE, *matrix.shape), seed)
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:kept].sqrt()
    return roots[:, None] * right[:kept], left[:, :kept] * roots


def _leading(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return approximate leading singular triples; ``torch.svd_lowrank`` without its global random numbers."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis = torch.linalg.qr(matrix @ probe).Q
    for _ in range(_PASSES):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right
