"""Embedding rows for tokens that a model lacks, as linear combinations of its existing rows.

The coefficients come either from the subwords into which the model splits the token's text, or from approximating the
token's row in the donor model's embedding by rows of tokens that both models share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Number of tokens per batch.
_BATCH = 64

#: Lower bound of the norms and distances that are divided by.
_TINY = 1e-8


def mean_coefficients(splits: Sequence[Sequence[int]], rows: int) -> tuple[Tensor, Tensor]:
    """Return the rows of each token's subwords, weighted equally.

    Args:
        splits: the subword ids of each token. A token without subwords gets the mean of all rows, encoded as index -1.
        rows: number of rows of the model's embedding; larger ids are ignored.

    Returns:
        Indices, int64 ``(n, k)``, and coefficients, float32 ``(n, k)``, padded with 0 after the last subword.
    """
    known = [[number for number in split if number < rows] for split in splits]
    width = max([1, *map(len, known)])
    indices, weights = torch.zeros(len(known), width, dtype=torch.int64), torch.zeros(len(known), width)
    for token, subwords in enumerate(known):
        if subwords:
            indices[token, : len(subwords)] = torch.tensor(subwords)
            weights[token, : len(subwords)] = 1 / len(subwords)
        else:
            indices[token, 0], weights[token, 0] = -1, 1
    return indices, weights


def nearest_coefficients(targets: Tensor, shared: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return each token's nearest shared tokens, weighted by inverse distance.

    Args:
        targets: rows of the tokens in the donor's embedding, float32 ``(n, d)``.
        shared: rows of the shared tokens in the donor's embedding, float32 ``(m, d)``.
        count: maximum number of shared tokens per token.

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
    """Return the shared tokens that orthogonal matching pursuit selects for each token.

    Each step selects the shared token whose row has the largest inner product with the target's residual, then
    projects the target onto the span of all rows selected so far.

    Args:
        targets: rows of the tokens in the donor's embedding, float32 ``(n, d)``.
        shared: rows of the shared tokens in the donor's embedding, float32 ``(m, d)``.
        count: maximum number of shared tokens per token; values above ``d`` have no further effect.

    Returns:
        Indices into the shared tokens, int64 ``(n, k)``, and least-squares coefficients, float32 ``(n, k)``.

    Source:
        Goddard, Fernandes Neto 2025, https://arxiv.org/abs/2506.06607; orthogonal matching pursuit: Pati et al. 1993.
    """
    steps = min(count, len(shared), shared.shape[1])
    parts = [_pursue(batch, shared, steps) for batch in targets.split(_BATCH)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _pursue(targets: Tensor, shared: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Run orthogonal matching pursuit on one batch; return indices and coefficients."""
    count, width = targets.shape
    chosen = torch.zeros(count, steps, dtype=torch.int64)
    basis = torch.zeros(count, width, steps)
    factors = torch.zeros(count, steps, steps)
    residual, available = targets.clone(), torch.ones(count, len(shared), dtype=torch.bool)
    batch = torch.arange(count)
    for step in range(steps):
        products = (residual @ shared.T).abs().masked_fill_(~available, -1.0)
        chosen[:, step] = products.argmax(1)
        available[batch, chosen[:, step]] = False
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


def combine_rows(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Return linear combinations of rows.

    Args:
        rows: the model's embedding matrix, ``(V, d)`` in any float dtype.
        indices: row indices, int64 ``(n, k)``; -1 stands for the mean of all rows.
        weights: coefficients, float32 ``(n, k)``.

    Returns:
        float32 ``(n, d)``.
    """
    parts = []
    mean = rows.to(torch.float64).mean(0).to(torch.float32)
    for selected, factors in zip(indices.split(_BATCH), weights.split(_BATCH), strict=True):
        picked = rows[selected.clamp_min(0)].to(torch.float32)
        picked[selected < 0] = mean
        parts.append(torch.bmm(factors.unsqueeze(1), picked).squeeze(1))
    return torch.cat(parts) if parts else torch.empty(0, rows.shape[1])
