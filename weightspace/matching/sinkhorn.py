"""Sinkhorn's operator: the doubly stochastic matrix of some scores, and its gradient without unrolling.

``exp(scores)`` is scaled by rows and columns in turn until both sum to one; the lower the temperature that scores
were divided by, the nearer the result is to the permutation of the best assignment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Keeps the linear system of the gradient solvable where the matrix has become a permutation.
_RIDGE = 1e-6


def sinkhorn(scores: Tensor, *, iterations: int = 100, tolerance: float = 1e-3) -> Tensor:
    """Return the doubly stochastic matrix of scores, computed in logarithms.

    Args:
        scores: ``(…, n, n)``, finite, any floating dtype; already divided by the temperature.
        iterations: scalings of the rows and of the columns, at most.
        tolerance: scaling ends when no sum of a row is further from one, as a share.

    Returns:
        Of the shape and dtype of the scores; columns sum to one, rows as nearly as the tolerance says. The gradient
        is that of the limit, by the implicit function theorem: one linear system, whatever the iterations were.

    Source:
        Sinkhorn 1964, https://doi.org/10.1214/aoms/1177703591; as an operator Mena et al. 2018,
        https://arxiv.org/abs/1802.08665; the gradient Eisenberger et al. 2022, https://arxiv.org/abs/2205.06688.
    """
    result = _Sinkhorn.apply(scores, iterations, tolerance)
    assert isinstance(result, Tensor)
    return result


class _Sinkhorn(torch.autograd.Function):
    """The scaling, and the gradient of its limit."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, iterations: int, tolerance: float) -> Tensor:
        rows = torch.zeros_like(scores[..., :1])
        columns = torch.zeros_like(scores[..., :1, :])
        for _ in range(iterations):
            before, rows = rows, -torch.logsumexp(scores + columns, -1, keepdim=True)
            columns = -torch.logsumexp(scores + rows, -2, keepdim=True)
            if bool((rows - before).abs().max() < tolerance):
                break
        result = (scores + rows + columns).exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (result,), (gradient,) = ctx.saved_tensors, grad_outputs
        return _pulled_back(result.double(), gradient.double()).to(result.dtype), None, None


def _pulled_back(matrix: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient in the scores, given that in the matrix.

    With ``P`` the matrix and ``G`` its gradient, it is ``P ∘ (G − α 1ᵀ − 1 βᵀ)``, where ``α`` and ``β`` make the
    rows and columns of the result sum to zero: the sums of ``P`` are held. ``α`` is eliminated, and what is left
    for ``β`` is singular along 1, a direction that does not matter and is filled in.
    """
    weighted = matrix * gradient
    rows, columns = matrix.sum(-1, keepdim=True), matrix.sum(-2)
    scaled = matrix / rows
    system = torch.diag_embed(columns) - matrix.mT @ scaled + 1 / matrix.shape[-1]
    system += _RIDGE * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    wanted = weighted.sum(-2, keepdim=True).mT - scaled.mT @ weighted.sum(-1, keepdim=True)
    beta = torch.cholesky_solve(wanted, torch.linalg.cholesky(system))
    alpha = (weighted.sum(-1, keepdim=True) - matrix @ beta) / rows
    return weighted - matrix * (alpha + beta.mT)
