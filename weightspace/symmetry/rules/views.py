"""Operators that view the same units in other axes, or repeat them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, fixed, freeze, product, split
from weightspace.symmetry.rules.call import Axes, Call, broadcast, dims_of, freeze_all, one_shape


def view(call: Call) -> Axes:
    """Regroup the same units into other axes, splitting atoms at boundaries."""
    shape = one_shape(call)
    return freeze_all(call) if 0 in shape else regroup(call.tensors()[0], shape)


def regroup(x: Axes, shape: Sequence[int]) -> Axes:
    """Return the axes of a tensor viewed in another shape."""
    left = list(shape)
    source = [axis for axis in x if axis.size > 1]
    result: list[Axis] = []
    while left:
        taken, wanted = ([source.pop(0)] if source and left[0] > 1 else []), [left.pop(0)]
        have, want = (taken[0].size if taken else 1), wanted[0]
        while have != want:
            if have < want:
                taken.append(source.pop(0))
                have *= taken[-1].size
            else:
                wanted.append(left.pop(0))
                want *= wanted[-1]
        result += factor(product(*taken), wanted)
    return tuple(result)


def factor(axis: Axis, sizes: list[int]) -> list[Axis]:
    """View one axis as several of the given sizes."""
    result: list[Axis] = []
    rest = axis
    for size in sizes:
        halves = split(rest, size)
        if halves is None:
            freeze(axis)
            return [fixed(one) for one in sizes]
        result.append(halves[0])
        rest = halves[1]
    return result


def place_in_view(shape: Sequence[int], dim: int, viewed: Sequence[int]) -> int | None:
    """Return the axis of a view that equals one axis of its source, neither split nor merged, or None."""
    before = math.prod(shape[:dim])
    places = (place for place, size in enumerate(viewed) if size == shape[dim] and math.prod(viewed[:place]) == before)
    return next(places, None)


def permute(call: Call) -> Axes:
    """Reorder the axes."""
    x = call["self"]
    return tuple(x[dim] for dim in call["dims"])


def transpose(call: Call) -> Axes:
    """Swap two axes."""
    axes = list(call["self"])
    first, second = (call["dim0"], call["dim1"]) if "dim0" in call.args else (0, -1)
    if len(axes) > 1:
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def unsqueeze(call: Call) -> Axes:
    """Insert an axis of size one."""
    x = call["self"]
    place = call["dim"] % (len(x) + 1)
    return (*x[:place], fixed(1), *x[place:])


def squeeze(call: Call) -> Axes:
    """Drop axes of size one."""
    x = call["self"]
    dims = dims_of(call.get("dim"), len(x))
    return tuple(axis for place, axis in enumerate(x) if not (place in dims and axis.size == 1))


def expand(call: Call) -> Axes:
    """Repeat axes of size one: the copies are equal, so any permutation may act on the new axis."""
    return broadcast([call["self"]], one_shape(call))


def repeat(call: Call) -> Axes:
    """Tile whole axes."""
    x, repeats = call["self"], call["repeats"]
    x = (*(fixed(1) for _ in range(len(repeats) - len(x))), *x)
    return tuple(product(Atom(times), axis) for times, axis in zip(repeats, x, strict=True))


def repeat_interleave(call: Call) -> Axes:
    """Repeat each unit along one axis."""
    x, dim, repeats = call["self"], call["dim"], call["repeats"]
    if dim is None or not isinstance(repeats, int):
        return freeze_all(call)
    dim %= len(x)
    return (*x[:dim], product(x[dim], Atom(repeats)), *x[dim + 1 :])


def as_complex(call: Call) -> Axes:
    """View the last axis as real and imaginary parts."""
    x = call["self"]
    freeze(x[-1], "")
    return x[:-1]


def as_real(call: Call) -> Axes:
    """Put real and imaginary parts along a last axis."""
    return (*call["self"], fixed(2))
