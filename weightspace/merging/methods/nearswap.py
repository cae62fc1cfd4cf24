r"""Nearswap: differences up to a size are taken in full, larger ones up to that size.

.. math:: b + w\,(x - b), \quad w = \operatorname{clamp}\Bigl(\frac{t}{|x - b|}, 0, 1\Bigr), \qquad\text{which is}\quad
    b + \operatorname{clamp}(x - b, -t, t)
"""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.merging.methods._tensor_stack import Formula, Stack


def nearswap(stack: Stack, weights: Sequence[float], *, t: float) -> Formula:
    """Return the formula of nearswap.

    Args:
        stack: one model and the base.
        weights: not used.
        t: in the unit of the weights; below 0 the base comes out.

    Source:
        mergekit, https://arxiv.org/abs/2403.13257, ``nearswap``.
    """
    size = max(0.0, t)
    return lambda piece: piece.origin - (piece.origin - piece.tensors[0]).clamp_(-size, size)
