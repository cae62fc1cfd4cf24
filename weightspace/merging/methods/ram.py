r"""Reinforced Agent Merging (RAM): changes made by one model are kept in full, those made by several are averaged.

With the sets of changed elements :math:`C_i = \{|x_i - b| > \varepsilon\}`, an element is :math:`b` plus the mean of
the differences of the models that changed it. ``ramplus_tl`` amplifies those that only one model changed by
:math:`\lambda_i = 1 + r\,\operatorname{clamp}(\text{shared}_i / \text{unique}_i, 0, \alpha)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack

Epsilon: TypeAlias = Annotated[float, Parameter(help="threshold up to which a difference counts as none", low=0)]


@merge_method(
    formula="b + changes made by one model + the mean of changes made by several",
    source="Reinforced Agent Merging 2026, https://arxiv.org/abs/2601.13572",
    base="required",
    weighted=False,
    scale_free=False,
    cost=6,
)
def ram(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    epsilon: Epsilon = 1e-5,
) -> Formula:
    """Return the formula of RAM."""
    return _reinforced(_rounded(epsilon, stack), [1.0] * len(weights))


@merge_method(
    formula="ram, with the changes made by one model amplified by its fraction of overlap",
    source="Reinforced Agent Merging 2026, https://arxiv.org/abs/2601.13572",
    base="required",
    weighted=False,
    scale_free=False,
    cost=9,
)
def ramplus_tl(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    epsilon: Epsilon = 1e-5,
    r: Annotated[float, Parameter(help="strength of the amplification by overlap")] = 0.1,
    alpha: Annotated[float, Parameter(help="maximum overlap ratio", low=0)] = 0.2,
) -> Formula:
    """Return the formula of RAM+ at tensor level: changes made by only one model are amplified, tensor by tensor."""
    shared, unique = [0] * len(weights), [0] * len(weights)
    for chunk in stack.chunks():
        changed = [delta.abs() > epsilon for delta in chunk.deltas()]
        count = sum(mask.to(torch.int32) for mask in changed)
        for index, mask in enumerate(changed):
            alone = int((mask & (count == 1)).sum())
            unique[index] += alone
            shared[index] += int(mask.sum()) - alone
    overlaps = [several / one if one else alpha for several, one in zip(shared, unique, strict=True)]
    return _reinforced(_rounded(epsilon, stack), [1 + r * min(max(overlap, 0.0), alpha) for overlap in overlaps])


def _rounded(epsilon: float, stack: TensorStack) -> float:
    """Return ``ε`` rounded to the dtype of the inputs, so that a difference of exactly that size counts as none."""
    return float(torch.tensor(epsilon, dtype=stack.dtype))


def _reinforced(epsilon: float, alone: Sequence[float]) -> Formula:
    """Return the formula; ``alone`` are the factors of changes made by only one model."""

    def formula(chunk: Chunk) -> Tensor:
        count = torch.zeros_like(chunk.origin)
        shift, single = torch.zeros_like(chunk.origin), torch.zeros_like(chunk.origin)
        for tensor, factor in zip(chunk.tensors, alone, strict=True):
            back = chunk.origin - tensor
            changed = (back.abs() > epsilon).to(back.dtype)
            back.mul_(changed)
            count += changed
            shift += back
            single.add_(back, alpha=factor)
        moved = torch.where(count == 1, single, shift / count.clamp_min(1))
        return chunk.origin - moved

    return formula
