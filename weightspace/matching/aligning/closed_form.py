"""Alignment in closed form: each group in turn gets the map that fits the weights best, with all others held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from weightspace.matching.aligning.inner_products import Family, InnerProducts, all_pairs, inner_product
from weightspace.progress import Progress
from weightspace.symmetry.kinds.action import SIGN
from weightspace.symmetry.kinds.element import Element

#: Relative gain of a sweep below which the ascent has converged.
_TOLERANCE = 1e-10


class Ascent(NamedTuple):
    """Maps of all groups.

    Attributes:
        maps: group -> map.
        objective: ``⟨A, g·B⟩``, initially and after every sweep.
        converged: whether the last sweep improved nothing.
    """

    maps: dict[str, Tensor]
    objective: tuple[float, ...]
    converged: bool


def ascend(
    listed: Sequence[Family],
    held: Mapping[str, Tensor],
    *,
    max_sweeps: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> Ascent:
    """Maximise ``⟨A, g·B⟩`` over the maps that are not held.

    The first sweep starts from the weights between fixed units and a group (embeddings, positions and the head for the
    stream of a transformer) and goes on with whatever lies next to groups that have maps.

    Args:
        listed: the families of all groups.
        held: maps that stay as they are.
        max_sweeps: maximum passes over all groups.
        on_progress: called after every ``"sweep"``, with the objective.
    """
    free = [family for family in listed if family.group not in held]
    pairs = all_pairs(listed)
    if not listed:
        return Ascent({}, (0.0,), converged=True)
    spec = listed[0].spec
    products = InnerProducts()
    values = [inner_product(spec, pairs, {})]
    maps = _initial_maps(free, held)
    for sweep in range(1, max_sweeps + 1):
        for family in free:
            candidate = {**maps, **family.best(maps)}
            if products.total(family.known(candidate), candidate) > products.total(family.known(maps), maps):
                maps = candidate
        values.append(products.total(pairs, maps))
        if on_progress is not None:
            on_progress(Progress("sweep", sweep, max_sweeps, values[-1]))
        if sweep > 1 and values[-1] - values[-2] <= _TOLERANCE * abs(values[-1]):
            return Ascent(maps, tuple(values), converged=True)
    return Ascent(maps, tuple(values), converged=False)


def _initial_maps(free: Sequence[Family], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a first map for every group, working outward from fixed units and held groups."""
    maps, left = dict(held), list(free)
    while left:
        family = next((family for family in left if family.is_seen(maps)), None)
        maps |= family.best(maps) if family else _identity(left[0])
        left.remove(family or left[0])
    return maps


def _identity(family: Family) -> dict[str, Tensor]:
    moves = Element.identity(family.spec).moves
    return {name: value for name, value in moves.items() if name.removeprefix(SIGN) in family.members}
