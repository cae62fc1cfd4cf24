"""Operators that cut an axis, pick units of it, or lay axes end to end."""

from __future__ import annotations

from weightspace.symmetry.axes import Atom, concat, cut, fixed, freeze, unite
from weightspace.symmetry.rules.call import Axes, Call, broadcast, freeze_all, one_shape


def cat(call: Call) -> Axes:
    """Lay tensors end to end."""
    tensors = [axes for axes in call["tensors"] if not (len(axes) == 1 and axes[0].size == 0)]
    dim = call["dim"] % len(tensors[0])
    for other in tensors[1:]:
        for place, (a, b) in enumerate(zip(tensors[0], other, strict=True)):
            if place != dim:
                unite(a, b)
    joined = concat(*(axes[dim] for axes in tensors))
    return (*tensors[0][:dim], joined, *tensors[0][dim + 1 :])


def stack(call: Call) -> Axes:
    """Lay tensors along a new axis."""
    tensors = call["tensors"]
    dim = call["dim"] % (len(tensors[0]) + 1)
    for other in tensors[1:]:
        broadcast([tensors[0], other], [axis.size for axis in other])
    return (*tensors[0][:dim], fixed(len(tensors)), *tensors[0][dim:])


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
    """One half gates the other."""
    x, dim = call["self"], call["dim"]
    left, right = cut(x[dim], x[dim].size // 2)
    unite(left, right)
    dim %= len(x)
    return (*x[:dim], left, *x[dim + 1 :])


def slice_(call: Call) -> Axes:
    """Keep a range of one axis."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    size, kept = x[dim].size, one_shape(call)[dim]
    start = min(max((call["start"] or 0) + (size if (call["start"] or 0) < 0 else 0), 0), size)
    if kept == size:
        return x
    if call["step"] != 1:
        freeze(x[dim])
        return (*x[:dim], fixed(kept), *x[dim + 1 :])
    _, rest = cut(x[dim], start)
    piece, _ = cut(rest, kept)
    return (*x[:dim], piece, *x[dim + 1 :])


def slice_scatter(call: Call) -> Axes:
    """Write a tensor over a range of one axis."""
    x, source, dim = call["self"], call["src"], call["dim"] % len(call["self"])
    size = x[dim].size
    start = min(max((call["start"] or 0) + (size if (call["start"] or 0) < 0 else 0), 0), size)
    if call["step"] != 1:
        return freeze_all(call)
    left, rest = cut(x[dim], start)
    _, right = cut(rest, source[dim].size)
    axes = [*x[:dim], concat(left, source[dim], right), *x[dim + 1 :]]
    others = [(*one[:dim], axes[dim], *one[dim + 1 :]) for one in (x, source)]
    return broadcast(others, [axis.size for axis in axes])


def select(call: Call) -> Axes:
    """Take one unit of an axis, which is thereby told from the others."""
    x, dim = call["self"], call["dim"] % len(call["self"])
    freeze(x[dim])
    return (*x[:dim], *x[dim + 1 :])


def unbind(call: Call) -> list[Axes]:
    """Take every unit of an axis apart."""
    return [select(call) for _ in call.shape]


def index(call: Call) -> Axes:
    """Gather by index tensors: indexed axes are frozen, the others pass."""
    x, indices = call["self"], call["indices"]
    if "index" in call.args:
        indices = [None] * (call["dim"] % len(x)) + [call["index"]]
    places = [place for place, one in enumerate(indices) if one is not None]
    for place in places:
        freeze(x[place])
        for axis in indices[place]:
            freeze(axis)
    kept = [axis for place, axis in enumerate(x) if place not in places]
    count = len(one_shape(call)) - len(kept)
    start = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    gathered = [fixed(size) for size in one_shape(call)[start : start + count]]
    return (*kept[:start], *gathered, *kept[start:])


def pad(call: Call) -> Axes:
    """Add units at the ends of the last axes: constant ones, or copies of others, whose order then matters."""
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
