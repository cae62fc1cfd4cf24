r"""Task arithmetic: differences from a base, scaled and added to it.

.. math:: b + \lambda \sum_i w_i (x_i - b) \qquad\text{with normalize, divided by}\quad \sum_i w_i
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated

from weightspace.arithmetic.coefficients import shifts
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._parameters import Lambda, Normalize
from weightspace.merging.methods._registry import Parameter, check_sum
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ Σ w_i (x_i − b)",
    source="Ilharco et al. 2023, https://arxiv.org/abs/2212.04089",
    base="required",
    divides_if="normalize",
)
def task_arithmetic(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
) -> Formula:
    """Return the formula of task arithmetic (section 2); negative weights forget a task.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.
    """
    if normalize:
        check_sum(weights)
    exact = [Fraction(weight) for weight in weights]
    factors = tuple(Fraction(lambda_) * weight for weight in exact)
    return LinearFormula(shifts(factors, sum(exact, Fraction(0)) if normalize else 1), with_base=True)


@merge_method(
    formula="b + α (x − b)",
    source="Wortsman et al. 2022, https://arxiv.org/abs/2109.01903",
    base="required",
    models=(1, 1),
    weighted=False,
)
def wise_ft(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    alpha: Annotated[float, Parameter(help="0 is the base, 1 the fine-tuned model")] = 0.5,
) -> Formula:
    """Return the formula of WiSE-FT (section 3)."""
    return LinearFormula(shifts((alpha,)), with_base=True)
