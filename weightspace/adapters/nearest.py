"""The nearest matrix of a low rank, as two factors."""

from __future__ import annotations

import torch
from torch import Tensor

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
