r"""MultiSLERP: the mean direction of several models, with their average norm.

.. math:: \Bigl(\sum_i w_i \lVert x_i\rVert\Bigr)\, \frac{\sum_i w_i u_i}{\lVert\sum_i w_i u_i\rVert}, \qquad
    u_i = \frac{x_i}{\lVert x_i\rVert}

With a base, it is applied to the differences from the base, and the result is added to the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._directions import Directions, gram, scaled_sum
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Formula, TensorStack
from weightspace.merging.methods.linear import normalised


@merge_method(
    formula="the mean of the directions, with the average norm of the models",
    source="mergekit, https://arxiv.org/abs/2403.13257",
    base="optional",
    normalised=True,
    divides_if="normalize_weights",
    cost=4,
)
def multislerp(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    normalize_weights: Annotated[bool, Parameter(help="divide the weights by their sum")] = True,
) -> Formula:
    """Return the formula of the mean direction.

    Zero tensors have no direction and are skipped; if none remains, or the directions cancel, the result is 0, or the
    base.

    Raises:
        WeightspaceError: with ``normalize_weights``, the weights sum to zero.
    """
    shares = normalised(weights, "normalize_weights") if normalize_weights else list(weights)
    deltas = stack.base is not None
    directions = Directions(gram(stack, deltas=deltas))
    length = math.fsum(share * norm for share, norm in zip(shares, directions.norms, strict=True))
    return scaled_sum(directions, shares, length, deltas=deltas)
