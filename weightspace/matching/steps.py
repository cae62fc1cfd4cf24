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
        return _plain(family, indices)
    first = _joint(family, indices)
    if family.is_linear():
        return first
    second = match_inside(family, family.inner, {**indices, **(first or {})})
    return {**(first or {}), **second} or None


def _plain(family: Family, indices: Indices) -> Indices | None:
    group = family.group
    gains = family.gains((group,), indices)
    best = assign(gains)
    if torch.equal(best, indices[group]):
        return None
    if family.is_linear():
        old, new = (gains.gather(1, index[:, None]).double() for index in (indices[group], best))
        improved = new.sum() - old.sum() > TOLERANCE * new.abs().sum()
        return {group: best} if improved else None
    return _if_better(family, indices, {group: best})


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
    return match_by(family, lambda rows: family.gains(rows, indices))


def match_by(family: Family, gains: Callable[[tuple[str, ...]], Tensor]) -> dict[str, Tensor]:
    """Return the permutations of a family's groups that gain most.

    The units of the outer group are matched by what their inner units are worth at best, then the inner ones.

    Args:
        family: a group and those inside it.
        gains: returns the gains of the group alone, or of it and one inside it, as ``Family.gains`` does.
    """
    total = gains((family.group,))
    size = len(total)
    inside: dict[str, Tensor] = {}
    for name in family.inner:
        blocks = gains((family.group, name)).transpose(1, 2)
        rows = torch.stack([torch.stack([assign(blocks[i, j]) for j in range(size)]) for i in range(size)])
        total = total + blocks.gather(3, rows[..., None]).sum((2, 3), dtype=torch.float64)
        inside[name] = rows
    best = assign(total)
    return {family.group: best, **{name: rows[torch.arange(size), best] for name, rows in inside.items()}}


def match_inside(family: Family, inside: Iterable[str], indices: Indices) -> dict[str, Tensor]:
    """Return what improves if some inner groups of a family move, one at a time, the outer one held."""
    change: dict[str, Tensor] = {}
    for inner in inside:
        now = {**indices, **change}
        gains = family.inner_gains(inner, now)
        best = torch.stack([assign(one) for one in gains])
        if not torch.equal(best, now[inner]):
            change |= _if_better(family, now, {inner: best}) or {}
    return change
