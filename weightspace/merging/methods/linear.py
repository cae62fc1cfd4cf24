r"""The weighted mean of models.

.. math:: \frac{\sum_i w_i x_i}{\sum_i w_i} \qquad\text{or, without normalize,}\qquad \sum_i w_i x_i
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.elementwise.affine import affine, combination
from weightspace.errors import WeightspaceError
from weightspace.merging.stack import Formula, Piece, Stack

#: Weights whose sum is below this share of their size cancel; what is left is rounding.
_CANCELLED = 1e-12


def linear(stack: Stack, weights: Sequence[float], *, normalize: bool) -> Formula:
    """Return the formula of the weighted mean.

    Args:
        stack: the models, without a base.
        weights: any finite numbers, negative ones too.
        normalize: divide by the sum of the weights.

    Raises:
        WeightspaceError: the weights sum to zero.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 2.
    """
    total = math.fsum(weights)
    shares, whole = (normalised(weights, total), 1.0) if normalize else (weights, total)

    def formula(piece: Piece) -> Tensor:
        # What is not finite in float32 is computed once more in float64: the fast way does not look.
        combine = combination if piece.tensors[0].dtype == torch.float32 else affine
        return combine(piece.tensors, shares, whole)

    return formula


def normalised(weights: Sequence[float], total: float) -> list[float]:
    """Return the weights divided by ``total``, their sum.

    Raises:
        WeightspaceError: they cancel.
    """
    if abs(total) <= _CANCELLED * math.fsum(abs(weight) for weight in weights):
        raise WeightspaceError(
            f"Weights {', '.join(f'{weight:g}' for weight in weights)} sum to 0, by which a mean divides. "
            "Expected weights with another sum, or normalize=False."
        )
    return [weight / total for weight in weights]
