r"""Fisher merging: each element weighted by how much the model's predictions depend on it.

.. math:: \frac{\sum_i w_i F_i x_i}{\sum_i w_i F_i}

with :math:`F_i` the diagonal of the Fisher information.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.coefficients import shares as exact_shares
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._data_statistics import known_evidence
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._registry import check_nonnegative
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods.linear import normalised


@merge_method(
    formula="Σ w_i F_i x_i / Σ w_i F_i, with F_i the diagonal Fisher information",
    source="Matena and Raffel 2022, https://arxiv.org/abs/2111.09832",
    normalised=True,
    divides_if="always",
    nonnegative=True,
    evidence="fisher",
    cost=6,
)
def fisher(
    stack: TensorStack,
    weights: Sequence[float],
) -> Formula:
    """Return the formula of Fisher merging (equation 4).

    The evidence of a tensor is its diagonal Fisher information, of the same shape. Where it is 0 in all models, and for
    tensors without evidence in any model, the result is the weighted mean.

    Raises:
        WeightspaceError: a weight or an information is negative, or only some models have evidence of a tensor.
    """
    check_nonnegative(weights, "fisher")
    shares = normalised(weights, "always")
    evidence = known_evidence(stack, stack.shape)
    if not evidence:
        return LinearFormula(exact_shares(tuple(weights)))

    def formula(chunk: Chunk) -> Tensor:
        stop = chunk.start + chunk.tensors[0].numel()
        known = [one.read(chunk.start, stop).to(torch.float64) for one in evidence]
        if not all(float(one.min()) >= 0 for one in known):  # the minimum with NaN is NaN
            raise WeightspaceError(f"A Fisher information of {stack.name!r} is negative or NaN. Expected mean squares.")
        factors = [one * share for one, share in zip(known, shares, strict=True)]
        total = sum(factors[1:], factors[0])
        mean = affine(chunk.tensors, shares)
        shift = torch.zeros_like(mean)
        for tensor, factor in zip(chunk.tensors, factors, strict=True):
            shift += (mean - tensor) * (factor / total).to(mean.dtype)
        return torch.where(total > 0, mean - shift, mean)

    return formula
