"""Eigenvectors of Gram matrices in float64: the singular vectors of float32 matrices at a fraction of an SVD's cost.

``A Aᵀ`` has the left singular vectors of ``A``, and its squared singular values. Squaring halves the digits: those of
float64 that are left are the ones of float32, so that float64 matrices take the SVD. The error of a pair of vectors is
the rounding of float64 times the squared ratio of the largest singular value to theirs; if it exceeds ``TOLERANCE`` for
vectors that count, there is no spectrum, and the SVD is called for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Largest error of singular vectors, about that of float32.
TOLERANCE = 2.0**-20

#: Columns that are widened at a time, and rows of the lower triangle of a product that are computed together.
_COLUMNS, _ROWS = 1024, 256


class Spectrum(NamedTuple):
    """A leading part: ``vectors``, ``(m, k)`` in float64, and singular ``values`` in descending order."""

    vectors: Tensor
    values: Tensor


def gram(matrices: Sequence[Tensor]) -> Tensor:
    """Return the lower triangle of ``Σ A Aᵀ`` of matrices ``(m, n)``, as ``(m, m)`` in float64; zero above blocks."""
    rows = matrices[0].shape[0]
    total = torch.zeros(rows, rows, dtype=torch.float64, device=matrices[0].device)
    for matrix in matrices:
        for block in matrix.split(_COLUMNS, dim=1):
            wide = block.double()
            for start in range(0, rows, _ROWS):
                stop = min(start + _ROWS, rows)
                total[start:, start:stop].addmm_(wide[start:], wide[start:stop].T)
    return total


def spectrum(
    product: Tensor, bound: float, *, size: Tensor | None = None, rank: int | None = None, floor: float = 0.0
) -> Spectrum | None:
    """Return the spectrum of matrices from their Gram matrix, or None if its vectors are too inaccurate.

    Args:
        product: the result of ``gram``.
        bound: singular values up to this fraction of ``size`` are dropped as rounding errors.
        size: by default the largest singular value.
        rank: maximum number of vectors; by default all.
        floor: singular values up to this are dropped, too.
    """
    squares, vectors = torch.linalg.eigh(product)  # reads the lower triangle
    values = squares.flip(0).clamp_min(0).sqrt()
    least = (bound * (values[:1] if size is None else size)).clamp(min=floor)
    kept = min(int((values > least).sum()), len(values) if rank is None else rank)
    if kept and float(values[0] / values[kept - 1]) ** 2 * torch.finfo(torch.float64).eps > TOLERANCE:
        return None
    return Spectrum(vectors.flip(1)[:, :kept], values[:kept])


def times(factor: Tensor, matrix: Tensor) -> Tensor:
    """Return the product of a float64 ``(k, m)`` and a matrix ``(m, n)``, rounded to the matrix's dtype."""
    product = matrix.new_empty(factor.shape[0], matrix.shape[1])
    for block, out in zip(matrix.split(_COLUMNS, dim=1), product.split(_COLUMNS, dim=1), strict=True):
        out.copy_(factor @ block.double())
    return product
