r"""The direction that lies between several, as long as the models are on average.

.. math:: \Bigl(\sum_i w_i \lVert x_i\rVert\Bigr)\, \frac{\sum_i w_i u_i}{\lVert\sum_i w_i u_i\rVert}, \qquad
    u_i = \frac{x_i}{\lVert x_i\rVert}

With a base, of the differences from it, which are added to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace.merging.methods._directions import Directions, gram, scaled_sum
from weightspace.merging.methods._tensor_stack import Formula, Stack
from weightspace.merging.methods.linear import normalised


def multislerp(stack: Stack, weights: Sequence[float], *, normalize_weights: bool) -> Formula:
    """Return the formula of the mean direction.

    Zero tensors have no direction and are left out of the mean; where none is left, or the directions cancel, the
    result is 0, or the base.

    Args:
        stack: the models, and a base or none.
        weights: any finite numbers.
        normalize_weights: divide them by their sum.

    Raises:
        WeightspaceError: with ``normalize_weights``, the weights sum to zero.

    Source:
        mergekit, https://arxiv.org/abs/2403.13257, ``multislerp``.
    """
    shares = normalised(weights) if normalize_weights else list(weights)
    deltas = stack.base is not None
    directions = Directions(gram(stack, deltas=deltas))
    length = math.fsum(share * norm for share, norm in zip(shares, directions.norms, strict=True))
    return scaled_sum(directions, shares, length, deltas=deltas)
