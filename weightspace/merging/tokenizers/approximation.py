"""Rows for tokens that a model has never seen, as linear combinations of rows of its own tokens.

The coefficients are found where both models are known: the subwords that the model splits the token's text into, or
the tokens that both models share and that approximate the token in the other model's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Tokens whose coefficients are found at a time.
_BATCH = 64

#: The smallest norm that is divided by.
_TINY = 1e-8


def mean_coefficients(splits: Sequence[Sequence[int]], rows: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the subwords of each token, with equal weights.

    Args:
        splits: the ids of the subwords of each token; none: the token gets the mean of all rows, told by index -1.
        rows: of the model's embedding; ids beyond them count as none.

    Returns:
        Indices, int64 ``(n, k)``, and coefficients, float32 ``(n, k)``; those behind the last subword are 0.
    """
    known = [[number for number in split if number < rows] for split in splits]
    width = max([1, *map(len, known)])
    indices, weights = torch.zeros(len(known), width, dtype=torch.int64), torch.zeros(len(known), width)
    for place, own in enumerate(known):
        if own:
            indices[place, : len(own)] = torch.tensor(own)
            weights[place, : len(own)] = 1 / len(own)
        else:
            indices[place, 0], weights[place, 0] = -1, 1
    return indices, weights


def nearest_coefficients(targets: Tensor, shared: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the nearest shared tokens of each token, weighted by their inverse distances.

    Args:
        targets: rows of the tokens in the other model, float32 ``(n, d)``.
        shared: rows of the shared tokens there, float32 ``(m, d)``.
        count: how many shared tokens, at most.

    Returns:
        Indices into the shared tokens, int64 ``(n, k)``, and coefficients that sum to 1, float32 ``(n, k)``.
    """
    indices, weights = [], []
    for batch in targets.split(_BATCH):
        near = torch.cdist(batch, shared).topk(min(count, len(shared)), largest=False)
        inverse = 1 / near.values.clamp_min(_TINY)
        indices.append(near.indices)
        weights.append(inverse / inverse.sum(1, keepdim=True))
    return torch.cat(indices), torch.cat(weights)


def pursuit_coefficients(targets: Tensor, shared: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the shared tokens that orthogonal matching pursuit chooses for each token.

    Each step takes the shared token whose row has the largest inner product with the residual of the target,
    and projects the target anew onto all that were taken.

    Args:
        targets: rows of the tokens in the other model, float32 ``(n, d)``.
        shared: rows of the shared tokens there, float32 ``(m, d)``.
        count: how many shared tokens, at most; more than ``d`` change nothing.

    Returns:
        Indices into the shared tokens, int64 ``(n, k)``, and least-squares coefficients, float32 ``(n, k)``.

    Source:
        Goddard, Fernandes Neto 2025, https://arxiv.org/abs/2506.06607; Pati et al. 1993 for the pursuit.
    """
    steps = min(count, len(shared), shared.shape[1])
    parts = [_pursue(batch, shared, steps) for batch in targets.split(_BATCH)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _pursue(targets: Tensor, shared: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return indices and coefficients of one batch."""
    count, width = targets.shape
    chosen = torch.zeros(count, steps, dtype=torch.int64)
    basis = torch.zeros(count, width, steps)
    factors = torch.zeros(count, steps, steps)
    residual, open_ = targets.clone(), torch.ones(count, len(shared), dtype=torch.bool)
    places = torch.arange(count)
    for step in range(steps):
        products = (residual @ shared.T).abs().masked_fill_(~open_, -1.0)
        chosen[:, step] = products.argmax(1)
        open_[places, chosen[:, step]] = False
        atom = shared[chosen[:, step]]
        known = basis[:, :, :step]
        along = torch.bmm(known.transpose(1, 2), atom.unsqueeze(-1)).squeeze(-1)
        rest = atom - torch.bmm(known, along.unsqueeze(-1)).squeeze(-1)
        norm = rest.norm(dim=1)
        independent = norm > 1e-4 * atom.norm(dim=1).clamp_min(_TINY)
        factors[:, :step, step] = along
        factors[:, step, step] = torch.where(independent, norm, torch.ones_like(norm))
        basis[:, :, step] = torch.where(independent.unsqueeze(1), rest / norm.clamp_min(_TINY).unsqueeze(1), 0.0)
        projected = torch.bmm(basis.transpose(1, 2), targets.unsqueeze(-1))
        residual = targets - torch.bmm(basis, projected).squeeze(-1)
    projected = torch.bmm(basis.transpose(1, 2), targets.unsqueeze(-1))
    return chosen, torch.linalg.solve_triangular(factors, projected, upper=True).squeeze(-1)


def combined(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Return linear combinations of rows.

    Args:
        rows: of the model, ``(V, d)`` in any float dtype.
        indices: of rows, int64 ``(n, k)``; -1 is the mean of all.
        weights: float32 ``(n, k)``.

    Returns:
        float32 ``(n, d)``.
    """
    parts = []
    mean = rows.to(torch.float64).mean(0).to(torch.float32)
    for own, factors in zip(indices.split(_BATCH), weights.split(_BATCH), strict=True):
        picked = rows[own.clamp_min(0)].to(torch.float32)
        picked[own < 0] = mean
        parts.append(torch.bmm(factors.unsqueeze(1), picked).squeeze(1))
    return torch.cat(parts) if parts else torch.empty(0, rows.shape[1])
