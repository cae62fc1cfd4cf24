"""A start for coordinate ascent that does not trust the order in which units happen to stand.

While nothing is known of the neighbours' permutations, two units can be compared by what no permutation of the
neighbours changes: the moments of their weights. Where nearly every unit has a nearest one of its own, the two
networks are copies or close to it, and coordinate ascent from the order in the file, which can stop short of it,
starts from this answer instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.matching.families import Family, Indices
from weightspace.matching.steps import match_jointly

#: Share of units with a nearest unit of their own above which a group is taken to be told apart.
TOLD_APART = 0.9


def blind_start(listed: list[Family]) -> dict[str, Tensor]:
    """Return permutations of the families whose units are told apart without knowing any other group."""
    result: dict[str, Tensor] = {}
    for family in listed:
        result |= _recognise(family) or {}
    return result


def _recognise(family: Family) -> Indices | None:
    """Return the permutations of one family, or None where its units are not told apart."""
    if not family.pairs:
        return None
    size = family.spec.groups[family.group]
    alone = torch.zeros(size, size)
    inside: dict[str, Tensor] = {}
    for inner in family.inner or (None,):
        close = _closeness(family, (family.group,) if inner is None else (family.group, inner))
        if close.argmax(1).unique().numel() < TOLD_APART * len(close):
            return None
        if inner is None:
            alone = close
        else:
            inside[inner] = close.view(size, len(close) // size, size, len(close) // size)
    return match_jointly(family, alone, inside)


def _closeness(family: Family, rows: tuple[str, ...]) -> Tensor:
    """Return −½‖f(a_i) − f(b_j)‖² for all pairs of units, every feature scaled to unit variance."""
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in family.pairs:
        for place in (place for place, group in enumerate(pair.groups) if group == rows[-1]):
            places = [place] if len(rows) == 1 else [pair.groups.index(rows[0]), place]
            for side, tensor in zip(features, (pair.target, pair.source.view), strict=True):
                side.append(_invariants(tensor, pair.groups, places))
    a, b = (torch.cat(side, dim=1) for side in features)
    centre, spread = a.mean(0), a.std(0, correction=0)
    told = spread > 0
    a, b = ((one[:, told] - centre[told]) / spread[told] for one in (a, b))
    return a @ b.T - a.square().sum(1)[:, None] / 2 - b.square().sum(1) / 2


def _invariants(tensor: Tensor, groups: tuple[str | None, ...], places: list[int]) -> Tensor:
    """Return one row a unit: its weights where their order is known, moments where it is not."""
    known = [dim for dim in range(tensor.ndim) if dim not in places and groups[dim] is None]
    unknown = [dim for dim in range(tensor.ndim) if dim not in places and groups[dim] is not None]
    moved = tensor.permute(*places, *known, *unknown).flatten(0, len(places) - 1)
    if unknown:
        x = moved.flatten(1 + len(known))
        moved = torch.stack([m.mean(-1) for m in (x, x.abs(), x * x, x * x.abs(), x * x * x)], dim=-1)
    return moved.reshape(len(moved), -1)
