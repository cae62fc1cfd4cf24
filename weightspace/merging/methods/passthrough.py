"""Passthrough: one model's tensors, optionally scaled. Recipes use it to stack layers of several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from weightspace.arithmetic.coefficients import ratios
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="scale × x",
    source="mergekit, https://arxiv.org/abs/2403.13257",
    models=(1, 1),
    weighted=False,
)
def passthrough(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    scale: Annotated[float, Parameter(help="factor")] = 1.0,
) -> Formula:
    """Return the formula ``scale · x``."""
    return LinearFormula(ratios((scale,)))
