r"""Task arithmetic: differences from a base, scaled and added to it.

.. math:: b + \lambda \sum_i w_i (x_i - b) \qquad\text{with normalize, divided by}\quad \sum_i w_i
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from weightspace.arithmetic.coefficients import shifts
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._tensor_stack import Formula, Stack
from weightspace.merging.methods.linear import check_sum


def task_arithmetic(stack: Stack, weights: Sequence[float], *, lambda_: float, normalize: bool) -> Formula:
    """Return the formula of task arithmetic.

    Args:
        stack: the models and their base.
        weights: any finite numbers; negative ones forget a task.
        lambda_: factor of the merged difference.
        normalize: divide by the sum of the weights.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.

    Source:
        Ilharco et al. 2023, https://arxiv.org/abs/2212.04089, section 2.
    """
    if normalize:
        check_sum(weights)
    exact = [Fraction(weight) for weight in weights]
    factors = tuple(Fraction(lambda_) * weight for weight in exact)
    return LinearFormula(shifts(factors, sum(exact, Fraction(0)) if normalize else 1), with_base=True)


def wise_ft(stack: Stack, weights: Sequence[float], *, alpha: float) -> Formula:
    """Return the formula of WiSE-FT: the straight line from the base (0) to one fine-tuned model (1).

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, section 3.
    """
    return LinearFormula(shifts((alpha,)), with_base=True)
