"""Bases of the columns of matrices of low rank, from products with few random vectors.

A sketch of a matrix whose rank is lower has all of its columns: the residual is rounding, which is checked. For other
matrices there is no basis; the singular values of fine-tunes decay too slowly for a randomised SVD to converge.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Further random vectors; and the fraction of the smaller side up to which a sketch costs little.
_MORE, _FRACTION = 8, 8

#: Columns of the residual that are computed at a time.
_COLUMNS = 1024


def column_basis(matrix: Tensor, rank: int, bound: float, size: Tensor | None = None) -> Tensor | None:
    """Return orthonormal columns that span a matrix ``(m, n)``, or None if its rank is higher than ``rank``.

    Args:
        matrix: ``(m, n)``.
        rank: number of columns at most, except for a few more.
        bound: the norm of what the columns don't span is at most this fraction of ``size``.
        size: by default a lower bound of the largest singular value.

    Source:
        Halko et al. 2011, https://arxiv.org/abs/0909.4061, algorithm 4.1.
    """
    count = rank + _MORE
    if count * _FRACTION > min(matrix.shape):
        return None
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis, triangle = torch.linalg.qr(matrix @ probe)
    diagonal = triangle.diagonal().abs()
    if float(diagonal[-1]) > bound * float(diagonal.max()):  # the last random vector still brings a new direction
        return None
    largest = torch.linalg.vector_norm(matrix @ probe[:, 0]) / torch.linalg.vector_norm(probe[:, 0])
    left = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for block in matrix.split(_COLUMNS, dim=1):
        left += (block - basis @ (basis.T @ block)).double().square().sum()
    return basis if bool(left.sqrt() <= bound * (largest if size is None else size)) else None
