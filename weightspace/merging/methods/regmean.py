r"""RegMean: the linear layer whose outputs best match those of every model on its own data.

.. math:: W = \Bigl(\sum_i W_i G_i\Bigr) \Bigl(\sum_i G_i\Bigr)^{-1}, \qquad G_i = X_i^\top X_i

with :math:`X_i` the layer's inputs in model ``i``, and the off-diagonal elements of :math:`G_i` reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.coefficients import shares as exact_shares
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._data_statistics import known_evidence
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorReader, TensorStack


@merge_method(
    formula="(Σ G_i)⁻¹ Σ G_i W_i, with G_i = X_iᵀX_i of the inputs of every linear layer; the mean elsewhere",
    source="Jin et al. 2023, https://arxiv.org/abs/2212.09849",
    granularity="whole",
    weighted=False,
    normalised=True,
    evidence="gram",
    on_device=True,
)
def regmean(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    reduce: Annotated[float, Parameter(help="factor of the off-diagonal elements of G_i", low=0, high=1)] = 0.9,
) -> Formula:
    """Return the formula of RegMean (equation 2, section 4).

    The evidence of a weight with ``n`` elements per row (linear layers, convolutions) is ``X_iᵀX_i``, of shape ``(n,
    n)``. Tensors without evidence, and directions in which no model has data, get the mean.

    Raises:
        WeightspaceError: a matrix isn't symmetric, or only some models have evidence of a tensor.
    """
    shares = [1 / len(weights)] * len(weights)
    width = stack.numel // max(1, stack.shape[0]) if stack.shape else 0
    evidence = known_evidence(stack, (width, width))
    if not evidence:
        return LinearFormula(exact_shares((1.0,) * len(weights)))

    def formula(chunk: Chunk) -> Tensor:
        products = [_reduced(one, width, reduce, stack.name).to(stack.device) for one in evidence]
        tensors = [tensor.double() for tensor in chunk.tensors]
        mean = affine(tensors, shares)
        moved = torch.zeros(len(mean), width, dtype=torch.float64, device=stack.device)
        for tensor, product in zip(tensors, products, strict=True):
            moved += (mean - tensor).view(len(mean), -1).to(stack.device) @ product
        moved @= torch.linalg.pinv(sum(products[1:], products[0]), hermitian=True)
        return mean - moved.cpu().view_as(mean)

    return formula


def _reduced(flat: TensorReader, width: int, reduce: float, name: str) -> Tensor:
    """Return one ``G_i`` in float64 with reduced off-diagonal elements."""
    product = flat.read(0, width * width).to(torch.float64).view(width, width)
    if not torch.allclose(product, product.T, rtol=1e-4, atol=1e-4 * float(product.abs().max())):
        raise WeightspaceError(f"The evidence of {name!r} is not symmetric. Expected XᵀX of the layer's inputs.")
    if width and float(product.diagonal().min()) < 0:
        raise WeightspaceError(f"The evidence of {name!r} has negative squares. Expected XᵀX of the layer's inputs.")
    return torch.lerp(product.diagonal().diag(), product, reduce)
