"""Axes that are only ever taken apart: fused queries, keys and values.

``qkv.view(batch, tokens, 3, heads, dim)`` followed by ``q, k, v = …`` could be read as one axis ``(3 heads dim)``,
which would tie the dimensions of the values to those of the queries. Where every use of the axis of three picks one
of its units, it is a sum of three parts instead, and each part is followed on its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from weightspace.symmetry.axes import Axis, cut, fixed
from weightspace.symmetry.rules.parts import UNCHANGED, VIEWS, Axes, Parts
from weightspace.symmetry.rules.views import factor, regroup


def view_as_parts(node: fx.Node, x: Axes, shape: Sequence[int]) -> Parts | None:
    """Return the parts that a view makes, or None where no axis of it is only taken apart."""
    if _name(node) not in VIEWS:
        return None
    dim = next((dim for dim, size in enumerate(shape) if size > 1 and _only_picked(node, dim, len(shape))), None)
    end = None if dim is None else _end_of_source_axis(x, shape, dim)
    if dim is None or end is None:
        return None
    inside = list(shape[dim + 1 : end])
    whole = regroup(x, [*shape[:dim], shape[dim] * math.prod(inside), *shape[end:]])
    marker, rest = fixed(shape[dim]), whole[dim]
    alternatives: list[Axes] = []
    for _ in range(shape[dim]):
        part, rest = cut(rest, math.prod(inside))
        alternatives.append((*whole[:dim], marker, *factor(part, inside), *whole[dim + 1 :]))
    return Parts(marker, tuple(alternatives))


def _end_of_source_axis(x: Sequence[Axis], shape: Sequence[int], dim: int) -> int | None:
    """Return where the axes end that a view made of the same source axis as ``dim``, or None if ``dim`` is its last."""
    suffixes = {math.prod(axis.size for axis in x[place:]) for place in range(len(x) + 1)}
    ends = (end for end in range(dim + 1, len(shape) + 1) if math.prod(shape[end:]) in suffixes)
    end = next(ends, None)
    return end if end is not None and math.prod(shape[dim + 1 : end]) > 1 else None


def _name(node: fx.Node) -> str:
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def _only_picked(node: fx.Node, dim: int, rank: int) -> bool:
    """Tell whether everything that becomes of an axis ends in ``select`` or ``unbind`` along it."""
    return bool(node.users) and all(_picks(user, dim, rank) for user in node.users)


def _picks(user: fx.Node, dim: int, rank: int) -> bool:
    name = _name(user)
    args: list[Any] = [*user.args[1:], *user.kwargs.values()]
    if name in ("select", "unbind"):
        return (args[0] if args else 0) % rank == dim
    if name in UNCHANGED:
        return _only_picked(user, dim, rank)
    if name == "permute":
        return _only_picked(user, [place % rank for place in args[0]].index(dim), rank)
    if name == "transpose":
        first, second = (place % rank for place in args)
        return _only_picked(user, {first: second, second: first}.get(dim, dim), rank)
    if name == "unsqueeze":
        return _only_picked(user, dim + (args[0] % (rank + 1) <= dim), rank + 1)
    if name == "squeeze" and args:
        dropped = [place % rank for place in (args[0] if isinstance(args[0], list | tuple) else [args[0]])]
        sizes = user.args[0].meta["val"].shape  # type: ignore[union-attr]
        dropped = [place for place in dropped if sizes[place] == 1]
        return _only_picked(user, dim - sum(place < dim for place in dropped), rank - len(dropped))
    return False
