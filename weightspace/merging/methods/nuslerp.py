r"""NuSLERP: spherical interpolation of two models by their weights, of the whole tensor or of each row or column.

With :math:`t = w_2 / (w_1 + w_2)`, it follows the arc between the two models, or between their differences from a base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import shares, shifts
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._directions import gram, vectors
from weightspace.merging.methods._linear_combination import LinearFormula, computed_formula
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods.slerp import arc

#: Weights whose sum is below this count as equal.
_CANCELLED = 1e-6

#: The arc is a straight line unless ``1 − cos²`` is above this: the rounding of a cosine, a divisor at 180°.
_STRAIGHT = 1e-14


@merge_method(
    formula="the arc between two models, or their differences from the base, at w_2 / (w_1 + w_2)",
    source="mergekit, https://arxiv.org/abs/2403.13257",
    base="optional",
    models=(2, 2),
    granularity="slices",
    elementwise_if=("nuslerp_flatten", True),
    normalised=True,
    cost=4,
    copies=64,
)
def nuslerp(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    nuslerp_flatten: Annotated[
        bool, Parameter(help="use one arc for the whole tensor instead of one per row (or column)")
    ] = True,
    nuslerp_row_wise: Annotated[
        bool, Parameter(help="without flattening, use arcs along dim 0 instead of the last dim")
    ] = False,
) -> Formula:
    """Return the formula of the arc between two models, or between their differences from the base."""
    pair = (1.0, 1.0) if abs(sum(weights)) < _CANCELLED else tuple(weights)
    t = pair[1] / sum(pair)
    deltas = stack.base is not None
    if nuslerp_flatten or len(stack.shape) < 2:
        (aa, ab), (_, bb) = gram(stack, deltas=deltas)
        found = arc(aa, ab, bb, t, parallel=math.sqrt(1 - _STRAIGHT))
        if found is None:
            exact = shares(pair)
            return LinearFormula(shifts(exact.numerators, exact.divisor) if deltas else exact, with_base=deltas)
        return computed_formula(found, base="origin" if deltas else "none")
    products = _column_products(stack, deltas) if nuslerp_row_wise else lambda chunk: _row_products(chunk, deltas)
    return lambda chunk: _along(chunk, products(chunk), t, deltas)


def _row_products(chunk: Chunk, deltas: bool) -> list[Tensor]:
    """Return ``aa, ab, bb`` of the vectors along the last dim, in float64."""
    a, b = ((tensor - chunk.origin if deltas else tensor).double() for tensor in chunk.tensors)
    return [_along_last(one * other) for one, other in ((a, a), (a, b), (b, b))]


def _along_last(tensor: Tensor) -> Tensor:
    """Return the sums along the last dim, which is kept."""
    return row_sums(tensor.reshape(-1, tensor.shape[-1])).view(*tensor.shape[:-1], 1)


def _column_products(stack: TensorStack, deltas: bool) -> Callable[[Chunk], list[Tensor]]:
    """Return the same for the vectors along dim 0, which span all chunks."""
    sums = [torch.zeros(1, *stack.shape[1:], dtype=torch.float64) for _ in range(3)]
    for chunk in stack.chunks():
        a, b = (vector.double() for vector in vectors(chunk, deltas=deltas))
        for total, (one, other) in zip(sums, ((a, a), (a, b), (b, b)), strict=True):
            total += (one * other).sum(dim=0, keepdim=True)
    return lambda chunk: sums


def _along(chunk: Chunk, products: Sequence[Tensor], t: float, deltas: bool) -> Tensor:
    """Return the points at ``t`` on the arcs of vectors with given inner products."""
    aa, ab, bb = products
    lengths = aa.sqrt() * bb.sqrt()
    cosine = torch.where(lengths > 0, ab / lengths.clamp_min(torch.finfo(torch.float64).tiny), 0.0).clamp(-1, 1)
    theta, sine = cosine.acos(), (1 - cosine**2).sqrt()
    straight = (1 - cosine**2 <= _STRAIGHT) | ((aa == ab) & (ab == bb))
    sine = torch.where(straight, 1.0, sine)
    start = torch.where(straight, 1 - t, torch.sin((1 - t) * theta) / sine)
    end = torch.where(straight, t, torch.sin(t * theta) / sine)
    a, b = chunk.tensors
    origin = chunk.origin if deltas else a
    # a·start + b·end as a sum of moves, so that equal tensors come out bit for bit.
    first = (start if deltas else start + end - 1).to(a.dtype)
    moved = (a - origin if deltas else a) * first + (b - origin) * end.to(a.dtype)
    return torch.where(moved == 0, origin, origin + moved)
