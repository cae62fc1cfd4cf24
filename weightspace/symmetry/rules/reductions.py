"""Operators that combine the units of an axis, or depend on their order."""

from __future__ import annotations

from typing import Any

from weightspace.symmetry.rules.axis_algebra import fixed, freeze
from weightspace.symmetry.rules.call import Axes, Call, dims_of, is_axes, pointwise
from weightspace.symmetry.rules.selection import choose


def reduce(call: Call) -> Any:
    """Combine the units of some axes independently of their order."""
    if is_axes(call.get("other")):  # max(a, b) takes the larger of two tensors
        return pointwise(call)
    if call.name in ("max", "min", "median", "nanmedian") and isinstance(call.shape, list):
        return choose(call)
    x = call.tensors()[0]
    dims = dims_of(call.get("dim"), len(x))
    reduced = [x[dim] for dim in dims]
    kept = [axis for place, axis in enumerate(x) if place not in dims]
    call.mix(reduced, kept)
    if call.get("keepdim", "keepdims"):
        kept = [fixed(1) if place in dims else axis for place, axis in enumerate(x)]
    if isinstance(call.shape, list):
        return [tuple(kept) for _ in call.shape]
    return tuple(kept)


def ordered(call: Call) -> Any:
    """Depend on the order along one axis (cumsum, flip, roll, …): it is frozen, the others pass through."""
    x = call.tensors()[0]
    dims = call.get("dim", "dims")
    shapes = call.shape if isinstance(call.shape, list) else [call.shape]
    results = []
    for dim in dims_of(dims, len(x)):
        freeze(x[dim])
    for shape in shapes:
        results.append(
            tuple(axis if place not in dims_of(dims, len(x)) else fixed(shape[place]) for place, axis in enumerate(x))
        )
    return results if isinstance(call.shape, list) else results[0]


def triangle(call: Call) -> Axes:
    """Keep one triangle of the last two axes, whose order therefore matters."""
    x = call["self"]
    freeze(x[-1])
    freeze(x[-2])
    return x
