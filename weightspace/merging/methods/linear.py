"""The weighted mean of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.merging.affine import affine

#: Weights whose sum is below this share of their size cancel; what is left is rounding.
_CANCELLED = 1e-12


def linear(
    tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None, *, normalize: bool = True
) -> Tensor:
    """Return ``Σ w_i x_i / Σ w_i``, or without the division ``Σ w_i x_i``.

    Args:
        tensors: float tensors of one shape and dtype, one a model.
        weights: any finite numbers, negative ones too.
        base: must be None; the mean has no base.
        normalize: divide by the sum of the weights.

    Raises:
        WeightspaceError: the weights sum to zero, or a base is given.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 2.
    """
    if base is not None:
        raise WeightspaceError("Method 'linear' has no base, but one was given. Did you mean a task-vector method?")
    total = math.fsum(weights)
    if not normalize:
        return affine(tensors, weights, total)
    if abs(total) <= _CANCELLED * math.fsum(abs(weight) for weight in weights):
        raise WeightspaceError(
            f"Weights {', '.join(f'{weight:g}' for weight in weights)} sum to 0, by which a mean divides. "
            "Expected weights with another sum, or normalize=False."
        )
    return affine(tensors, [weight / total for weight in weights])
