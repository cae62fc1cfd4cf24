"""Operators that select units by their values, and those that look up selected units.

A router takes the experts with the largest scores: ``topk`` returns indices whose values refer to experts. Permuting
the experts permutes these values, and every look-up along the experts' axis (``gather``, ``scatter``, ``one_hot``,
``weights[indices]``) undoes it, so router and experts form one group. Indices from elsewhere (tokens, positions)
distinguish units by their position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, concat, fixed, freeze, is_fixed, resolve, unite
from weightspace.symmetry.rules.call import (
    Axes,
    Call,
    Indices,
    broadcast,
    fixed_like,
    freeze_all,
    is_axes,
    one_shape,
    pointwise,
    shared,
)


def choose(call: Call) -> Any:
    """Select the largest, smallest or middle units along one axis; return their values in order, and their indices."""
    x, dim = call["self"], call.get("dim")
    if dim is None and len(x) > 1:
        return freeze_all(call)
    dim = (dim or 0) % len(x)
    shape = one_shape(call)
    ranks = (fixed(shape[dim]),) if len(shape) == len(x) else ()
    axes = (*x[:dim], *ranks, *x[dim + 1 :])
    indices = Indices(axes, x[dim])
    return [axes, indices] if isinstance(call.shape, list) else indices


def count_up(call: Call) -> Any:
    """Number the units of an axis in order (``arange``), if it starts at zero and skips none."""
    shape = one_shape(call)
    if call.get("start") not in (None, 0) or call.get("step") not in (None, 1):
        return fixed_like(shape)
    axis = Atom(*shape)
    return Indices((axis,), axis)


def one_hot(call: Call) -> Axes:
    """Encode units of an axis as one-hot vectors; classes without an index are fixed."""
    indices, size = call["self"], one_shape(call)[-1]
    if not isinstance(indices, Indices):
        return (*indices, fixed(size))
    if size < indices.units.size:
        return freeze_all(call)
    return (*indices, concat(indices.units, fixed(size - indices.units.size)))


def compare(call: Call) -> Axes:
    """Compare for equality: indices of one axis unit by unit; any number distinguishes one of the units."""
    listed = list(call.indices())
    if len(listed) == 2 and listed[0].units.size == listed[1].units.size:
        unite(listed[0].units, listed[1].units)
    else:
        for indices in listed:
            freeze(indices.units)
    return pointwise(call)


def embedding(call: Call) -> Axes:
    """Look up rows by index: the vocabulary is fixed, the features pass through."""
    weight, indices = call["weight"], call["indices"]
    meet(weight[0], indices, is_table=True)
    return (*(_places_of([indices]) if isinstance(indices, Indices) else indices), weight[1])


def index(call: Call) -> Axes:
    """Look up ``x[indices]``: axes indexed by position are frozen, the others pass through."""
    x, indices = call["self"], call.get("indices")
    if "index" in call.args:
        indices = [None] * (call["dim"] % len(x)) + [call["index"]]
    kept, start = _look_up(x, indices, is_table=call.is_table)
    chosen = [own for own in indices if own is not None]
    if all(isinstance(own, Indices) for own in chosen):
        gathered = _places_of(chosen)
    else:
        for axis in (axis for own in chosen for axis in own):
            freeze(axis)
        shape = one_shape(call)
        gathered = fixed_like(tuple(shape[start : start + len(shape) - len(kept)]))
    return (*kept[:start], *gathered, *kept[start:])


def index_put(call: Call) -> Axes:
    """Assign by index, ``x[indices] = values``."""
    x, values, indices = call["self"], call["values"], call["indices"]
    kept, start = _look_up(x, indices)
    gathered = _places_of([own for own in indices if own is not None])
    call.mix(gathered, kept)
    written = (*kept[:start], *gathered, *kept[start:])
    broadcast([written, values], [axis.size for axis in written])
    return x


def _look_up(x: Axes, indices: Sequence[Axes | None], *, is_table: bool = False) -> tuple[Axes, int]:
    """Look up units; return the axes that aren't indexed, and the position at which the looked-up axes are inserted."""
    places = [place for place, own in enumerate(indices) if own is not None]
    for place in places:
        meet(x[place], indices[place] or (), is_table=is_table)
    kept = tuple(axis for place, axis in enumerate(x) if place not in places)
    return kept, places[0] if places == list(range(places[0], places[-1] + 1)) else 0


def meet(axis: Axis, indices: Axes, *, is_table: bool = False) -> None:
    """Look up units of an axis, which is frozen unless the indices refer to its units.

    Rows of a table that are looked up by other indices (tokens, leading positions) were never units.
    """
    if isinstance(indices, Indices) and indices.units.size == axis.size:
        unite(indices.units, axis)
        return
    freeze(axis, "" if is_table else None)
    if isinstance(indices, Indices):
        freeze(indices.units)


def _places_of(chosen: Sequence[Axes]) -> Axes:
    """Return the axes that several index tensors look up together, recording the choice of a single one."""
    if len(chosen) > 1 or not isinstance(chosen[0], Indices):
        return broadcast(chosen, _joint_shape(chosen))
    choice = chosen[0].choice
    return tuple(
        Atom(axis.size, fixed=True, cause=axis.cause, choice=choice)
        if isinstance(axis, Atom) and is_fixed(axis)
        else axis
        for axis in map(resolve, chosen[0])
    )


def _joint_shape(tensors: Sequence[Axes]) -> list[int]:
    rank = max(len(axes) for axes in tensors)
    sizes = [[axes[place - rank].size for axes in tensors if len(axes) >= rank - place] for place in range(rank)]
    return [max(here) for here in sizes]


def gather(call: Call) -> Axes:
    """Look up units along one axis, different ones for each unit of the other axes."""
    x, indices, dim = call["self"], call.get("index", "indices"), call["dim"]
    if dim is None or len(x) != len(indices):
        return freeze_all(call)
    dim %= len(x)
    meet(x[dim], indices)
    pairs = enumerate(zip(x, indices, strict=True))
    return tuple(own if place == dim else _beside(axis, own) for place, (axis, own) in pairs)


def scatter(call: Call) -> Axes:
    """Write to units along one axis, different ones for each unit of the other axes."""
    x, indices, source, dim = call["self"], call["index"], call.get("src"), call["dim"] % len(call["self"])
    meet(x[dim], indices)
    if is_axes(source):
        call.mix(source[dim : dim + 1], (*source[:dim], *source[dim + 1 :]))
        for own, written in zip(indices, source, strict=True):
            _beside(own, written)
    pairs = enumerate(zip(x, indices, strict=True))
    return tuple(axis if place == dim else _beside(own, axis) for place, (axis, own) in pairs)


def index_add(call: Call) -> Axes:
    """Write to units along one axis, the same ones for all units of the other axes."""
    x, indices, source, dim = call["self"], call["index"], call.get("source"), call["dim"] % len(call["self"])
    meet(x[dim], indices)
    if not is_axes(source) or not source:
        return x
    call.mix(source[dim : dim + 1], (*source[:dim], *source[dim + 1 :]))
    unite(source[dim], indices[0])
    return tuple(axis if place == dim else shared([axis, source[place]]) for place, axis in enumerate(x))


def _beside(axis: Axis, other: Axis) -> Axis:
    """Unite axes of two tensors; if one has fewer units, it has the first ones, and both are frozen."""
    if axis.size == other.size:
        return shared([other, axis])
    freeze(axis)
    freeze(other)
    return other
