r"""Subspace boosting: the small singular values of a merged difference raised to a larger one.

.. math:: b + \lambda\, U \max(\Sigma, \sigma_k)\, V^\top, \qquad x - b = U \Sigma V^\top, \quad
    k = \min \{j : \sum_{i \le j} \sigma_i \ge \beta \sum_i \sigma_i\}

Merging many tasks leaves a difference with a few large singular values; raising the others strengthens what single
tasks need. It is a step after a merge, whose result is the model ``x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._svd import on_matrices, with_values
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ × the difference with its small singular values raised to the k-th one",
    source="Skorobogat et al. 2025, https://arxiv.org/abs/2506.16506",
    base="end",
    models=(1, 1),
    granularity="whole",
    on_device=True,
    whole_copies=1,
    whole_fixed=7,
    squares=4,
    weighted=False,
)
def subspace_boosting(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
    beta: Annotated[
        float, Parameter(help="fraction of the sum of singular values up to the k-th one", low=0, high=1)
    ] = 0.01,
) -> Formula:
    """Return the formula of subspace boosting (algorithm 1); tensors other than matrices keep their difference.

    Singular values that are rounding errors have no directions, and are not raised.
    """
    raised = partial(_raised, beta=beta)
    return on_matrices(stack, lambda found, rounding: with_values(found[0], raised, floor=rounding), lambda_)


def _raised(values: Tensor, beta: float) -> Tensor:
    """Return singular values, in descending order, with the small ones raised to the k-th one."""
    sums = values.double().cumsum(dim=0)
    cut = min(int((sums < beta * sums[-1]).sum()), len(values) - 1)
    return values.clamp(min=float(values[cut]))
