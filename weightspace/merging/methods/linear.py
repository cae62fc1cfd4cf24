r"""The weighted mean of models.

.. math:: \frac{\sum_i w_i x_i}{\sum_i w_i} \qquad\text{or, without normalize,}\qquad \sum_i w_i x_i
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace.arithmetic.coefficients import ratios, shares
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._parameters import Normalize
from weightspace.merging.methods._registry import check_sum
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="Σ w_i x_i / Σ w_i",
    source="Wortsman et al. 2022, https://arxiv.org/abs/2203.05482",
    normalised=True,
    divides_if="normalize",
)
def linear(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    normalize: Normalize = True,
) -> Formula:
    """Return the formula of the weighted mean (section 2).

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.
    """
    if not normalize:
        return LinearFormula(ratios(tuple(weights)))
    check_sum(weights)
    return LinearFormula(shares(tuple(weights)))


def normalised(weights: Sequence[float], parameter: str = "normalize") -> list[float]:
    """Return the weights divided by their sum, as ``parameter`` asks for.

    Raises:
        WeightspaceError: they cancel.
    """
    check_sum(weights, parameter)
    total = math.fsum(weights)
    return [weight / total for weight in weights]
