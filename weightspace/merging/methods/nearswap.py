r"""Nearswap: differences up to a threshold are taken in full, larger ones are clamped to it.

.. math:: b + w\,(x - b), \quad w = \operatorname{clamp}\Bigl(\frac{t}{|x - b|}, 0, 1\Bigr), \qquad\text{which is}\quad
    b + \operatorname{clamp}(x - b, -t, t)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + clamp(t / |x − b|, 0, 1) (x − b)",
    source="mergekit, https://arxiv.org/abs/2403.13257",
    base="end",
    models=(1, 1),
    weighted=False,
    scale_free=False,
)
def nearswap(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    t: Annotated[float, Parameter(help="threshold up to which differences are taken in full")],
) -> Formula:
    """Return the formula of nearswap; a negative ``t`` gives the base."""
    size = max(0.0, t)
    return lambda chunk: chunk.origin - (chunk.origin - chunk.tensors[0]).clamp_(-size, size)
