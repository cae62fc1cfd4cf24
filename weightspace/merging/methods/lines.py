r"""LiNeS: task arithmetic whose factor grows linearly with depth, so that shallow layers stay close to the base.

.. math:: b + \lambda_l \sum_i w_i (x_i - b), \qquad \lambda_l = \alpha + \beta\, \frac{l - 1}{L - 1}

The tensor belongs to layer :math:`l = 1 \dots L` of its stack in the merged model; two towers are counted separately.
As in the authors' code, :math:`\lambda = \alpha` for tensors outside the layers: embeddings, heads, and norms before or
after them, and also for a stack of a single layer. By default :math:`\alpha = 1/N` for :math:`N` models, whatever their
weights, and :math:`\beta = 1 - \alpha`: the last layer adds the full task vectors. These defaults don't change a single
model, so ``alpha`` or ``beta`` must be given for a step after a merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated

from weightspace.arithmetic.coefficients import shifts
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ_l Σ w_i (x_i − b), with λ_l = α + β (l − 1) / (L − 1) in layer l of L, α outside the layers",
    source="Wang et al. 2024, https://arxiv.org/abs/2410.17146",
    base="required",
)
def lines(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    alpha: Annotated[
        float | None, Parameter(help="factor in the first layer and outside the layers", computed="1 / models")
    ] = None,
    beta: Annotated[
        float | None, Parameter(help="increase of the factor from the first to the last layer", computed="1 − alpha")
    ] = None,
) -> Formula:
    """Return the formula of LiNeS for the task vector of task arithmetic."""
    first = Fraction(1, len(weights)) if alpha is None else Fraction(alpha)
    increase = 1 - first if beta is None else Fraction(beta)
    factor = first + increase * _depth(stack.layer)
    moves = [factor.numerator * Fraction(weight) for weight in weights]
    return LinearFormula(shifts(moves, factor.denominator), with_base=True)


def _depth(layer: tuple[int, int] | None) -> Fraction:
    """Return 0 in the first layer and outside the layers, 1 in the last."""
    number, count = layer or (0, 1)
    return Fraction(number, max(1, count - 1))
