"""Axes that are always taken apart: fused queries, keys and values.

``qkv.view(batch, tokens, 3, heads, dim)`` followed by ``q, k, v = …`` could be read as one axis ``(3 heads dim)``,
which would tie the dimensions of the values to those of the queries. If every use of the axis of three selects some of
its units, it is a sum of three parts instead, and each part is tracked separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from weightspace.symmetry.rules import Axes, cat, dims_of, name_of, ordered, reduce, rule_of
from weightspace.symmetry.rules.axis_algebra import Axis, cut, fixed
from weightspace.symmetry.rules.call import Parts
from weightspace.symmetry.rules.fused import treats_alike
from weightspace.symmetry.rules.operators import CUTS, NORMALISATIONS, REARRANGEMENTS, VIEWS
from weightspace.symmetry.rules.views import factor, place_in_view, regroup
from weightspace.symmetry.shapes import shape_of, shapes_of


def view_as_parts(node: fx.Node, x: Axes, shape: Sequence[int]) -> Parts | None:
    """Return the parts that a view creates, or None if it has no axis that is always taken apart."""
    if name_of(node.target) not in VIEWS:
        return None
    dim = next((dim for dim, size in enumerate(shape) if size > 1 and _only_picked(node, dim, {})), None)
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
    """Return the end of the view's axes from the same source axis as ``dim``, or None if ``dim`` is the last one."""
    suffixes = {math.prod(axis.size for axis in x[place:]) for place in range(len(x) + 1)}
    ends = (end for end in range(dim + 1, len(shape) + 1) if math.prod(shape[end:]) in suffixes)
    end = next(ends, None)
    return end if end is not None and math.prod(shape[dim + 1 : end]) > 1 else None


def _only_picked(node: fx.Node, dim: int, known: dict[tuple[fx.Node, int], bool]) -> bool:
    """Return whether all uses of an axis end in selecting units of it."""
    if (node, dim) not in known:
        users = [user for user in node.users if user.op == "output" or shapes_of(user.meta.get("val")) is not None]
        known[node, dim] = bool(users) and all(_picks(node, user, dim, known) for user in users)
    return known[node, dim]


def _picks(node: fx.Node, user: fx.Node, dim: int, known: dict[tuple[fx.Node, int], bool]) -> bool:
    name, shape = name_of(user.target), _shape(node)
    if name in CUTS:
        along = _dims_of(user, len(shape)) == [dim]
        if along and name in ("select", "unbind"):
            return True
        dim -= name in ("select", "unbind") and _dims_of(user, len(shape))[0] < dim
        return all(
            (along and _shape(result)[dim] == 1) or _only_picked(result, dim, known) for result in _results(user)
        )
    moved = _moved(user, dim, shape)
    return moved is not None and all(_only_picked(result, moved, known) for result in _results(user)[:1])


def _results(user: fx.Node) -> list[fx.Node]:
    """Return the tensors that a node returns and that are read."""
    if not isinstance(user.meta.get("val"), list | tuple):
        return [user]
    return sorted(user.users, key=lambda result: result.args[1])  # type: ignore[arg-type, return-value]


def _moved(user: fx.Node, dim: int, shape: Sequence[int]) -> int | None:
    """Return the new position of an axis whose units an operator treats alike, or None if it doesn't."""
    name, rule, rank = name_of(user.target), rule_of(user.target), len(shape)
    if name in REARRANGEMENTS or name in VIEWS:
        return _rearranged(user, dim, shape)
    if treats_alike(name, rule):
        results = user.meta["val"]
        return dim + len(shape_of(results[0] if isinstance(results, list | tuple) else results)) - rank
    if name not in NORMALISATIONS and rule not in (cat, ordered, reduce):
        return None
    dims = _dims_of(user, rank)
    if dim in dims or (rule is reduce and isinstance(user.meta["val"], list | tuple)):
        return None
    is_shorter = rule is reduce and len(_shape(user)) < rank
    return dim - sum(place < dim for place in dims) if is_shorter else dim


def _rearranged(user: fx.Node, dim: int, shape: Sequence[int]) -> int | None:
    """Return the new position of an axis under an operator that rearranges axes, or None if it doesn't stay one."""
    name = name_of(user.target)
    args: list[Any] = [*user.args[1:], *user.kwargs.values()]
    rank = len(shape)
    if name == "permute":
        return [place % rank for place in args[0]].index(dim)
    if name in ("transpose", "swapaxes"):
        first, second = (place % rank for place in args)
        return {first: second, second: first}.get(dim, dim)
    if name == "unsqueeze":
        return dim + (args[0] % (rank + 1) <= dim)
    if name == "squeeze" and args:
        listed = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        return dim - sum(place % rank < dim and shape[place] == 1 for place in listed)
    return place_in_view(shape, dim, _shape(user)) if name in VIEWS else None


def _dims_of(user: fx.Node, rank: int) -> list[int]:
    """Return the dimensions along which a node cuts, reduces, normalises or orders units; all if it names none."""
    names = [argument.name for argument in user.target._schema.arguments]  # type: ignore[union-attr]
    bound: dict[str, Any] = {a.name: a.default_value for a in user.target._schema.arguments}  # type: ignore[union-attr]
    bound |= dict(zip(names, user.args, strict=False)) | user.kwargs
    if "normalized_shape" in bound:
        return list(range(rank - len(bound["normalized_shape"]), rank))
    return dims_of(next((bound[name] for name in ("dim", "dims") if name in bound), None), rank)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return shape_of(node.meta.get("val"))
