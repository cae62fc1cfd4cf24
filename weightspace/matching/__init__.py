"""Matching: permutations that bring one network into the basin of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.matching.ascent import Sweep
    from weightspace.matching.losses import Losses
    from weightspace.matching.many import ManyMatching
    from weightspace.matching.matching import Matching, l2_reduction
    from weightspace.matching.mixtures import straight_through_many
    from weightspace.matching.turns import merge_many
    from weightspace.matching.universe import cycle_consistent
    from weightspace.matching.weights import weight_matching

#: Public name -> the file that defines it.
_HOMES = {
    "Losses": "losses",
    "ManyMatching": "many",
    "Matching": "matching",
    "cycle_consistent": "universe",
    "l2_reduction": "matching",
    "Sweep": "ascent",
    "merge_many": "turns",
    "straight_through_many": "mixtures",
    "weight_matching": "weights",
}

__all__ = [
    "Losses",
    "ManyMatching",
    "Matching",
    "Sweep",
    "cycle_consistent",
    "l2_reduction",
    "merge_many",
    "straight_through_many",
    "weight_matching",
]

__getattr__ = resolver(__name__, _HOMES)
