"""One step of coordinate ascent: the best permutation of one family of groups, the others held."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from weightspace.matching.assignment import assign
from weightspace.matching.families import Family, Indices

#: A step counts as an improvement above this share of what the family contributes (float32 rounding lies below).
TOLERANCE = 1e-7


def step(family: Family, indices: Indices) -> Indices | None:
    """Return new permutations for a family's groups, or None where nothing improves."""
    if not family.pairs:
        return None
    if not family.inner:
        return _plain(family, indices) if family.is_linear() else _quadratic(family, indices)
    first = _joint(family, indices)
    if family.is_linear():
        return first
    second = match_inside(family, family.inner, {**indices, **(first or {})})
    return {**(first or {}), **second} or None


def _plain(family: Family, indices: Indices) -> Indices | None:
    group = family.group
    gains = family.gains((group,), indices)
    chosen = assign(gains)
    if torch.equal(chosen, indices[group]):
        return None
    old, new = (gains.gather(1, index[:, None]).double() for index in (indices[group], chosen))
    improved = new.sum() - old.sum() > TOLERANCE * new.abs().sum()
    return {group: chosen} if improved else None


def _quadratic(family: Family, indices: Indices) -> Indices | None:
    """Step where the group stands on both axes of a tensor, as in a recurrence.

    The gains are then the slope of a quadratic objective, and the assignment that is best by the slope may go too
    far. Each further try rewards units for staying, more and more. That makes the objective convex in the end (the
    reward of a permutation times itself is a constant), so that a step along the slope cannot lose; a reward of more
    than half of all that the units miss outweighs any move, so that the tries end after log₂ of twice their number.

    Source:
        The concave-convex procedure, Yuille and Rangarajan 2003, https://doi.org/10.1162/08997660360581958.
    """
    now = indices[family.group]
    gains = family.gains((family.group,), indices)
    held = gains.gather(1, now[:, None])
    missed = float((gains.amax(1, keepdim=True) - held).mean())
    reward = 0.0
    while True:
        chosen = assign(gains.scatter(1, now[:, None], held + reward))
        if torch.equal(chosen, now):
            return None
        if change := _if_better(family, indices, {family.group: chosen}):
            return change
        if not missed:  # all equal: there is nothing to win
            return None
        reward = 2 * reward or missed / 4


def _if_better(family: Family, indices: Indices, change: dict[str, Tensor]) -> Indices | None:
    """Return a change if the family's true objective rises by it."""
    old, new = family.objective(indices), family.objective({**indices, **change})
    return change if new - old > TOLERANCE * max(abs(old), abs(new)) else None


def _joint(family: Family, indices: Indices) -> Indices | None:
    change = match(family, indices)
    if all(torch.equal(index, indices[group]) for group, index in change.items()):
        return None
    return _if_better(family, indices, change)


def match(family: Family, indices: Indices) -> dict[str, Tensor]:
    """Return the best permutations of a family's groups, the others held."""
    return best(family, lambda rows: family.gains(rows, indices))


def best(family: Family, gains: Callable[[tuple[str, ...]], Tensor]) -> dict[str, Tensor]:
    """Return the permutations of a family's groups that gain most.

    The units of the outer group are matched by what their inner units are worth at best, then the inner ones.

    Args:
        family: a group and those inside it.
        gains: the matrix of gains of the group alone, or of it and one inside it, as ``Family.gains`` gives it.
    """
    total = gains((family.group,))
    size = len(total)
    inside: dict[str, Tensor] = {}
    for name in family.inner:
        blocks = gains((family.group, name)).transpose(1, 2)
        rows = torch.stack([torch.stack([assign(blocks[i, j]) for j in range(size)]) for i in range(size)])
        total = total + blocks.gather(3, rows[..., None]).sum((2, 3), dtype=torch.float64)
        inside[name] = rows
    chosen = assign(total)
    return {family.group: chosen, **{name: rows[torch.arange(size), chosen] for name, rows in inside.items()}}


def match_inside(family: Family, inside: Iterable[str], indices: Indices) -> dict[str, Tensor]:
    """Return what improves if some inner groups of a family move, one at a time, the outer one held."""
    change: dict[str, Tensor] = {}
    for inner in inside:
        now = {**indices, **change}
        gains = family.inner_gains(inner, now)
        chosen = torch.stack([assign(one) for one in gains])
        if not torch.equal(chosen, now[inner]):
            change |= _if_better(family, now, {inner: chosen}) or {}
    return change
