r"""Model Stock: interpolation between the base and the mean, at a position given by the angle between the fine-tunes.

.. math:: t\,\bar x + (1 - t)\,b, \qquad t = \frac{N\cos\theta}{1 + (N - 1)\cos\theta}

with :math:`\cos\theta` the mean over all pairs of the cosine between :math:`x_i - b` and :math:`x_j - b`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import shifts, simplest
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._directions import gram, row_grams
from weightspace.merging.methods._linear_combination import LinearFormula, computed_formula
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._task_vectors import TaskVectors, summed
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack

#: The line through the base and the mean has no nearest point unless ``1 + (N − 1) cos θ`` is above this.
_DEGENERATE = 1e-12


@merge_method(
    formula="t mean(x) + (1 − t) b, with t from the angle between the differences",
    source="Jang et al. 2024, https://arxiv.org/abs/2403.19522",
    base="required",
    models=(2, None),
    granularity="slices",
    elementwise_if=("filter_wise", False),
    weighted=False,
    cost=4,
)
def model_stock(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    filter_wise: Annotated[bool, Parameter(help="one angle per slice along dim 0 instead of one per tensor")] = False,
) -> Formula:
    """Return the formula of Model Stock (equation 7)."""
    count = len(weights)
    if not filter_wise or len(stack.shape) < 2:
        ratio = ratios(torch.tensor(gram(stack, deltas=True), dtype=torch.float64)[..., None])[0].item()
        if not math.isfinite(ratio):
            return computed_formula([ratio])
        return LinearFormula(shifts([simplest(ratio)] * count, count), with_base=True)
    by_row = ratios(row_grams(stack)) / count
    width = stack.numel // max(1, stack.shape[0])

    def formula(chunk: Chunk) -> Tensor:
        first = chunk.start // width
        rows = by_row[first : first + len(chunk.origin)].to(chunk.origin.dtype)
        shift = _negated_sum(chunk)
        return chunk.origin - shift.mul_(rows.view(-1, *[1] * (shift.dim() - 1)))

    return formula


def _negated_sum(chunk: Chunk) -> Tensor:
    """Return ``Σ (b − x_i)``."""
    negated = TaskVectors(chunk).negated
    return summed(negated, out=negated[0])


def ratios(products: Tensor) -> Tensor:
    """Return ``t`` for every slice.

    Args:
        products: inner products of the differences, ``(N, N, slices)`` in float64.
    """
    count = len(products)
    norms = products.diagonal().T.sqrt()
    lengths = norms[:, None] * norms[None]
    cosines = torch.where(lengths > 0, products / lengths.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    mean = (cosines.sum(dim=(0, 1)) - cosines.diagonal().sum(dim=1)) / (count * (count - 1))
    divisor = 1 + (count - 1) * mean
    usable = (divisor > _DEGENERATE) & (norms > 0).any(dim=0)
    ratio = torch.where(usable, count * mean / torch.where(usable, divisor, 1.0), 0.0)
    return torch.where(products.isfinite().all(dim=0).all(dim=0), ratio, torch.nan)
