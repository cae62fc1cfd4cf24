"""Orders of heads chosen by the outputs: inner products of weights hardly tell one order from another.

In each layer in turn other orders are tried, the maps inside the heads are fitted anew, and the order with the least
divergence of the midpoint's outputs from the mean logits of the two networks is kept. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor

from weightspace.matching.aligning.inner_products import Family, chosen_inside
from weightspace.matching.aligning.midpoint import Midpoint
from weightspace.progress import Progress
from weightspace.symmetry.kinds.action import Maps

#: Largest number of heads of which all orders are tried; of more, exchanges of two.
_ALL_ORDERS = 4
_SWEEPS = 2


def choose_heads(
    listed: Sequence[Family],
    maps: Maps,
    midpoint: Midpoint,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Tensor]:
    """Return maps in which the order of heads in every layer is the one with the least divergence.

    Args:
        listed: the families of all groups.
        maps: group -> map.
        midpoint: measures the divergence.
        on_progress: called after every ``"heads"`` of a layer, with the divergence in nats.
    """
    layers = [family for family in listed if family.inner and family.spec.kinds[family.group] == "permutation"]
    best = dict(maps)
    midpoint.move(best)
    least = midpoint.divergence()
    for number, family in enumerate(_SWEEPS * layers, start=1):
        names = sorted({pair.tensor for pair in family.pairs})
        inside, _ = family.best_inside(best)
        for order in _orders(best[family.group]):
            candidate = {**best, family.group: order, **chosen_inside(inside, order)}
            midpoint.move(candidate, names)
            value = midpoint.divergence()
            if value < least:
                best, least = candidate, value
        midpoint.move(best, names)
        if on_progress is not None:
            on_progress(Progress("heads", number, _SWEEPS * len(layers), least))
    return best


def _orders(order: Tensor) -> Iterator[Tensor]:
    """Yield other orders to try: all of a few units, exchanges of two of more."""
    if len(order) <= _ALL_ORDERS:
        yield from map(torch.tensor, permutations(range(len(order))))
        return
    for first, second in combinations(range(len(order)), 2):
        exchanged = order.clone()
        exchanged[[first, second]] = order[[second, first]]
        yield exchanged
