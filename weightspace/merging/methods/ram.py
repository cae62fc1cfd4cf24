r"""Reinforced Agent Merging: changes that one model made are kept whole, those that several made are averaged.

With the sets of changed elements :math:`C_i = \{|x_i - b| > \varepsilon\}`, an element is :math:`b` plus the mean of
the differences of the models that changed it. ``ramplus_tl`` enlarges those that one model alone changed by
:math:`\lambda_i = 1 + r\,\operatorname{clamp}(\text{shared}_i / \text{unique}_i, 0, \alpha)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.merging.methods._tensor_stack import Chunk, Formula, Stack


def ram(stack: Stack, weights: Sequence[float], *, epsilon: float) -> Formula:
    """Return the formula of RAM.

    Args:
        stack: the models and their base.
        weights: not used.
        epsilon: a difference of at most this size counts as none.

    Source:
        Reinforced Agent Merging, https://arxiv.org/abs/2601.13572.
    """
    return _reinforced(_rounded(epsilon, stack), [1.0] * len(weights))


def ramplus_tl(stack: Stack, weights: Sequence[float], *, epsilon: float, r: float, alpha: float) -> Formula:
    """Return the formula of RAM+, which enlarges what one model alone changed, tensor by tensor.

    Args:
        stack: the models and their base.
        weights: not used.
        epsilon: a difference of at most this size counts as none.
        r: how much the overlap enlarges.
        alpha: the largest overlap that counts.

    Source:
        Reinforced Agent Merging, https://arxiv.org/abs/2601.13572.
    """
    shared, unique = [0] * len(weights), [0] * len(weights)
    for piece in stack.pieces():
        changed = [delta.abs() > epsilon for delta in piece.deltas()]
        count = sum(mask.to(torch.int32) for mask in changed)
        for index, mask in enumerate(changed):
            alone = int((mask & (count == 1)).sum())
            unique[index] += alone
            shared[index] += int(mask.sum()) - alone
    overlaps = [several / one if one else alpha for several, one in zip(shared, unique, strict=True)]
    return _reinforced(_rounded(epsilon, stack), [1 + r * min(max(overlap, 0.0), alpha) for overlap in overlaps])


def _rounded(epsilon: float, stack: Stack) -> float:
    """Return ``ε`` as it is in the dtype of the inputs, so that a difference of just that size is none."""
    return float(torch.tensor(epsilon, dtype=stack.dtype))


def _reinforced(epsilon: float, alone: Sequence[float]) -> Formula:
    """Return the formula; ``alone`` are the factors of what one model alone changed."""

    def formula(piece: Chunk) -> Tensor:
        count = torch.zeros_like(piece.origin)
        shift, single = torch.zeros_like(piece.origin), torch.zeros_like(piece.origin)
        for tensor, factor in zip(piece.tensors, alone, strict=True):
            back = piece.origin - tensor
            changed = (back.abs() > epsilon).to(back.dtype)
            back.mul_(changed)
            count += changed
            shift += back
            single.add_(back, alpha=factor)
        moved = torch.where(count == 1, single, shift / count.clamp_min(1))
        return piece.origin - moved

    return formula
