"""Heads that share keys: two groups inside a third that stand in one block, matched together.

The output projection of grouped queries has an axis ``(keys [queries] [values])``. What a pair of key heads is worth
is found by matching their queries and their values in turn, each the best for the other, and then the key heads are
matched by these worths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.matching.assignment import assign
from weightspace.matching.families import Family, Indices, Pair
from weightspace.symmetry.pattern import Block
from weightspace.symmetry.permuting import permute_block

#: Rounds of matching the groups inside in turn; two or three settle it.
ROUNDS = 10

#: Gains of two groups inside, by their names: ``(first, second, first, second)``.
_Shared = Mapping[tuple[str, str], Tensor]


def match_nested(family: Family, indices: Indices) -> dict[str, Tensor]:
    """Return good permutations of a group and those inside it, the other groups held.

    Args:
        family: a group with others inside it; blocks with two of these count, with more of them they do not.
        indices: current permutations of all groups.
    """
    total = family.gains((family.group,), indices).double()
    alone = {name: family.gains((family.group, name), indices).transpose(1, 2) for name in family.inner}
    shared = _shared(family, indices)
    size = len(total)
    rows = {name: torch.empty(size, *gains.shape[1:3], dtype=torch.int64) for name, gains in alone.items()}
    for i in range(size):
        for j in range(size):
            chosen, worth = _inside(
                {name: gains[i, j] for name, gains in alone.items()},
                {names: gains[i, j] for names, gains in shared.items()},
            )
            total[i, j] += worth
            for name, index in chosen.items():
                rows[name][i, j] = index
    best = assign(total)
    return {family.group: best, **{name: table[torch.arange(size), best] for name, table in rows.items()}}


def _inside(alone: Mapping[str, Tensor], shared: _Shared) -> tuple[dict[str, Tensor], float]:
    """Return permutations of the groups inside one pair of units, and what they gain."""
    chosen = {name: assign(gains) for name, gains in alone.items()}
    for _ in range(ROUNDS if shared else 0):
        before = dict(chosen)
        for name, gains in alone.items():
            for names, one in shared.items():
                if name in names:
                    gains = gains + _seen(names, one, name, chosen)
            chosen[name] = assign(gains)
        if all(torch.equal(index, before[name]) for name, index in chosen.items()):
            break
    worth = sum(float(gains.gather(1, chosen[name][:, None]).double().sum()) for name, gains in alone.items())
    for (first, second), gains in shared.items():
        seen = _seen((first, second), gains, first, chosen)
        worth += float(seen.gather(1, chosen[first][:, None]).double().sum())
    return chosen, worth


def _seen(names: tuple[str, str], gains: Tensor, name: str, chosen: Mapping[str, Tensor]) -> Tensor:
    """Return the gains of one of two groups, the other one permuted as chosen."""
    first, second = names
    if name == first:
        return gains[:, torch.arange(gains.shape[1]), :, chosen[second]].sum(0)
    return gains[torch.arange(gains.shape[0]), :, chosen[first]].sum(0)


def _shared(family: Family, indices: Indices) -> dict[tuple[str, str], Tensor]:
    """Return the gains of two groups inside for every pair of units of their outer group."""
    result: dict[tuple[str, str], Tensor] = {}
    for pair in family.pairs:
        inside = tuple(name for name in family.inner if name in pair.groups)
        own = [group for group in pair.groups if group in family.members()]
        if len(inside) == 2 and len(own) == 3:
            gains = _gains(family, pair, (family.group, *inside), indices)
            names = (inside[0], inside[1])
            result[names] = result[names] + gains if names in result else gains
    return result


def _gains(family: Family, pair: Pair, groups: tuple[str, ...], indices: Indices) -> Tensor:
    """Return the gains of three groups in a block, ``(outer, outer, first, second, first, second)``."""
    places = [pair.groups.index(group) for group in groups]
    dims = tuple(None if place in places else dim for place, dim in enumerate(pair.source.dims))
    moved = permute_block(Block(pair.source.view, dims), indices, family.spec.outer)  # type: ignore[arg-type]
    order = [*places, *(place for place in range(moved.ndim) if place not in places)]
    sizes = [moved.shape[place] for place in places]
    a, b = (block.permute(order).reshape(math.prod(sizes), -1) for block in (pair.target, moved))
    return (a @ b.T).view(*sizes, *sizes).permute(0, 3, 1, 2, 4, 5)
