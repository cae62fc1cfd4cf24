r"""Spherical linear interpolation: along the arc between two directions.

.. math:: \frac{\sin((1-t)\theta)}{\sin\theta}\, b + \frac{\sin(t\theta)}{\sin\theta}\, x, \qquad \cos\theta =
    \frac{\langle b, x\rangle}{\lVert b\rVert \lVert x\rVert}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from weightspace.arithmetic.coefficients import shifts
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._directions import gram, with_base
from weightspace.merging.methods._linear_combination import LinearFormula, computed_formula
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Formula, TensorStack

#: Above this cosine, the arc is a straight line.
_PARALLEL = 0.9995


@merge_method(
    formula="the arc from the base (t = 0) to the model (t = 1)",
    source="Shoemake 1985, https://doi.org/10.1145/325334.325242",
    base="end",
    models=(1, 1),
    weighted=False,
    cost=4,
)
def slerp(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    t: Annotated[float, Parameter(help="position on the arc: 0 is the base, 1 the model")],
) -> Formula:
    """Return the formula of the arc from the base to the model, extended beyond both.

    The angle is that of their directions; the tensors aren't normalised. A zero tensor counts as
    orthogonal. Above a cosine of .9995, the arc is a straight line, as in mergekit.
    """
    (bb, bx), (_, xx) = gram(with_base(stack))
    found = arc(bb, bx, xx, t, parallel=_PARALLEL)
    if found is None:
        return LinearFormula(shifts((t,)), with_base=True)
    return computed_formula(found[::-1], base="term")


def arc(aa: float, ab: float, bb: float, t: float, *, parallel: float) -> tuple[float, float] | None:
    """Return the coefficients of ``a`` and ``b`` at ``t`` on their arc, or None if it is a straight line.

    Args:
        aa: ``⟨a, a⟩``.
        ab: ``⟨a, b⟩``.
        bb: ``⟨b, b⟩``.
        t: the position.
        parallel: above this absolute cosine, the line is straight.
    """
    lengths = math.sqrt(aa) * math.sqrt(bb)
    cosine = max(-1.0, min(1.0, ab / lengths)) if lengths > 0 else 0.0
    if aa == ab == bb or abs(cosine) > parallel:
        return None
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
