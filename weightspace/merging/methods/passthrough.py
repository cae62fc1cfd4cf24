"""Passthrough: one model's tensors as they are, or times a factor. Recipes stack layers of several models with it."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.arithmetic.coefficients import ratios
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._tensor_stack import Formula, Stack


def passthrough(stack: Stack, weights: Sequence[float], *, scale: float) -> Formula:
    """Return the formula ``scale · x``.

    Source:
        mergekit, https://arxiv.org/abs/2403.13257, ``passthrough``.
    """
    return LinearFormula(ratios((scale,)))
