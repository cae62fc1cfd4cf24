"""Operators that cut an axis, select units of it, or concatenate axes."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, concat, cut, fixed, freeze, split, unite
from weightspace.symmetry.rules.call import Axes, Call, Indices, broadcast, freeze_all, one_shape, shared


def cat(call: Call) -> Axes:
    """Concatenate tensors."""
    tensors = [axes for axes in call["tensors"] if not (len(axes) == 1 and axes[0].size == 0)]
    units = _numbered(tensors)
    dim = call["dim"] % len(tensors[0])
    for other in tensors[1:]:
        for place, (a, b) in enumerate(zip(tensors[0], other, strict=True)):
            if place != dim:
                unite(a, b)
    joined = concat(*(axes[dim] for axes in tensors))
    if len(tensors) > 1 and joined.size == len(tensors):  # one unit of each: equivalent to stacking
        joined = fixed(joined.size, call.name if call.is_learnt else "")
    result = (*tensors[0][:dim], joined, *tensors[0][dim + 1 :])
    return Indices(result, units) if units else result


def _numbered(tensors: Sequence[Axes]) -> Axis | None:
    """Return the axis that the values of all given tensors index, or None if they don't all index the same one."""
    indices = [axes for axes in tensors if isinstance(axes, Indices)]
    if len(indices) == len(tensors) and len({own.units.size for own in indices}) == 1:
        return shared([own.units for own in indices])
    for own in indices:
        freeze(own.units)
    return None


def stack(call: Call) -> Axes:
    """Stack tensors along a new axis."""
    tensors = call["tensors"]
    dim = call["dim"] % (len(tensors[0]) + 1)
    for other in tensors[1:]:
        broadcast([tensors[0], other], [axis.size for axis in other])
    which = fixed(len(tensors), call.name if call.is_learnt else "")
    result = (*tensors[0][:dim], which, *tensors[0][dim:])
    units = _numbered(tensors)
    return Indices(result, units) if units else result


def pieces(call: Call) -> list[Axes]:
    """Cut one axis (split, chunk)."""
    x = call["self"]
    dim = (call.get("dim") or 0) % len(x)
    rest, result = x[dim], []
    for shape in (shape for shape in call.shape if not isinstance(shape, int)):
        piece, rest = cut(rest, shape[dim])
        result.append((*x[:dim], piece, *x[dim + 1 :]))
    return result


def glu(call: Call) -> Axes:
    """Gate one half by the other."""
    x, dim = call["self"], call["dim"]
    left, right = cut(x[dim], x[dim].size // 2)
    unite(left, right)
    dim %= len(x)
    return (*x[:dim], left, *x[dim + 1 :])


def start_of(call: Call, size: int) -> int:
    """Return the start of a range of an axis of this size."""
    start = call.args["start"] or 0
    return min(max(start + (size if start < 0 else 0), 0), size)


def slice_(call: Call) -> Axes:
    """Keep a range of one axis."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    size, kept = x[dim].size, one_shape(call)[dim]
    start = start_of(call, size)
    if kept == size:
        return x
    if call["step"] != 1:
        halves = split(x[dim], kept) if kept * call["step"] == size else None
        if halves is None:
            freeze(x[dim])
        else:  # every n-th unit: n interleaved sets
            freeze(halves[1], "")
        return (*x[:dim], fixed(kept) if halves is None else halves[0], *x[dim + 1 :])
    _, rest = cut(x[dim], start)
    piece, _ = cut(rest, kept)
    return (*x[:dim], piece, *x[dim + 1 :])


def slice_scatter(call: Call) -> Axes:
    """Write a tensor over a range of one axis."""
    x, source, dim = call["self"], call["src"], call["dim"] % len(call["self"])
    size = x[dim].size
    start = start_of(call, size)
    if call["step"] != 1:
        return freeze_all(call)
    left, rest = cut(x[dim], start)
    _, right = cut(rest, source[dim].size)
    axes = [*x[:dim], concat(left, source[dim], right), *x[dim + 1 :]]
    others = [(*one[:dim], axes[dim], *one[dim + 1 :]) for one in (x, source)]
    return broadcast(others, [axis.size for axis in axes])


def select(call: Call) -> Axes:
    """Select one unit of an axis, which distinguishes it from the others."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    freeze(x[dim])
    return (*x[:dim], *x[dim + 1 :])


def unbind(call: Call) -> list[Axes]:
    """Separate all units of an axis."""
    return [select(call) for _ in call.shape]


def pad(call: Call) -> Axes:
    """Add units at the ends of the last axes: constants, or copies of other units, whose order then matters."""
    x, amounts = call["self"], call["pad"]
    axes = list(x)
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place : 2 * place + 2]
        if call.get("mode") in (None, "constant") and min(before, after) >= 0:
            axes[-1 - place] = concat(Atom(before), axes[-1 - place], Atom(after))
        elif before or after:
            freeze(axes[-1 - place])
            axes[-1 - place] = fixed(one_shape(call)[-1 - place])
    return tuple(axes)
