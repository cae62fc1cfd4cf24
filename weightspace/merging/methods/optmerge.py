r"""OptMerge: the descent of WUDI from a chosen start, towards task vectors without their small singular directions.

.. math:: b + \lambda\, \tau, \qquad \tau \text{ after 300 steps of descent on} \quad
    \sum_i \frac{\lVert (\tau - P_i)\, L_i^\top \rVert_F^2}{\lVert \tau_i \rVert_F^2}

.. math:: L_i = \Sigma_k V_k^\top \text{ of } \tau_i = x_i - b

with the :math:`k = \lfloor \min(m, n) / T \rfloor` leading singular triples of each task vector, for :math:`T` models.
``tuning`` is how the models were fine-tuned:

- ``full``: :math:`P_i` is the mean of the task vectors plus the ``k`` leading triples of :math:`\tau_i` minus that
  mean; the descent is Adam with a learning rate of 1e-5, from the sum of the task vectors.
- ``lora``: :math:`P_i` are the ``k`` leading triples of :math:`\tau_i`; gradient descent with a learning rate of 1e-4
  and a momentum of 0.9, from the mean of the task vectors. All steps are computed at once, from the singular vectors
  of the stacked :math:`L_i`.

With ``steps: 0``, both give the minimum that is nearest to the start. The authors take 300 steps, after which gradient
descent is still close to its start. Only the abstract and introduction were available: this follows the
authors' code, https://github.com/WalkerWorldPeace/MLLMerging, which leaves out embeddings, heads and vision towers by
name; here, all matrices are merged. Tensors other than matrices get the mean of their differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._descent import adam, changed, momentum_factors
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._svd import on_matrices, singular_vectors
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ τ, with τ from a few steps on the loss of WUDI for task vectors without small singular directions",
    source="Wei et al. 2025, https://arxiv.org/abs/2505.19892",
    base="required",
    granularity="whole",
    weighted=False,
    scale_free=False,
    whole_copies=12,
    on_device=True,
)
def optmerge(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
    tuning: Annotated[str, Parameter(help="how the models were fine-tuned", choices=("full", "lora"))] = "full",
    steps: Annotated[
        int, Parameter(help="steps of the descent; 0 for the minimum that is nearest to the start", low=0)
    ] = 300,
) -> Formula:
    """Return the formula of OptMerge; tensors other than matrices get the mean of their differences.

    With ``tuning="full"``, the result depends on the scale of the differences, since Adam moves each element by at most
    1e-5 in a step.
    """

    def merged(differences: list[Tensor], rounding: float) -> Tensor:
        moved, sizes = changed(differences)
        if not moved:
            return differences[0]
        mean = torch.zeros_like(differences[0], dtype=torch.float64)
        for difference in moved:
            mean += difference / len(differences)
        start = len(differences) * mean if tuning == "full" else mean
        # S, the L_i / ‖τ_i‖ one below the other, and Y = [P_i S_iᵀ]: the loss is ‖τSᵀ − Y‖².
        kept = max(1, min(mean.shape) // len(differences))
        leading = [_leading(one, size, kept, rounding) for one, size in zip(moved, sizes, strict=True)]
        stacked = torch.cat([rows for rows, _ in leading])
        targets = [product for _, product in leading]
        if tuning == "full":
            targets = [_centred(one, mean, kept, rows) for one, (rows, _) in zip(moved, leading, strict=True)]
        wanted = torch.cat(targets, dim=1)
        if tuning == "full" and steps:
            return adam(start, lambda at: 2 * (at @ stacked.T - wanted) @ stacked, steps)
        least = rounding * sum(size**-2 for size in sizes) ** 0.5
        return start + _towards_the_minimum(wanted - start @ stacked.T, stacked, steps, least)

    return on_matrices(stack, merged, lambda_)


def _leading(difference: Tensor, size: float, kept: int, rounding: float) -> tuple[Tensor, Tensor]:
    """Return ``S_i``, and ``P_i S_iᵀ`` for the leading triples ``P_i``."""
    left, values, right = singular_vectors(difference.double(), kept, floor=rounding)
    return values.unsqueeze(1) * right / size, left * values.square() / size


def _centred(difference: Tensor, mean: Tensor, kept: int, factor: Tensor) -> Tensor:
    """Return ``P_i S_iᵀ`` for the mean plus the leading triples of a difference minus it."""
    left, values, right = singular_vectors(difference - mean, kept)
    return left * values @ (right @ factor.T) + mean @ factor.T


def _towards_the_minimum(residual: Tensor, stacked: Tensor, steps: int, least: float) -> Tensor:
    """Return how far gradient descent moves a start ``τ``, or how far the minimum is, from ``Y − τSᵀ`` and ``S``."""
    left, values, right = singular_vectors(stacked, floor=least)
    squares = values.square()
    factors = momentum_factors(squares, steps) if steps else 1 / squares
    return residual @ left * (values * factors) @ right
