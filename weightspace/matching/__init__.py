"""Matching: permutations that bring one network into the basin of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.matching.activations import activation_matching
    from weightspace.matching.ascent import Sweep
    from weightspace.matching.cycle_consistent import cycle_consistent
    from weightspace.matching.descent import Trial
    from weightspace.matching.losses import Losses
    from weightspace.matching.many import ManyMatching
    from weightspace.matching.matching import Matching, l2_reduction
    from weightspace.matching.merge_many import merge_many
    from weightspace.matching.methods import MATCHINGS, MatchingMethod, run_matching
    from weightspace.matching.rebasin import sinkhorn_rebasin
    from weightspace.matching.straight import straight_through
    from weightspace.matching.straight_through_many import straight_through_many
    from weightspace.matching.weights import weight_matching

#: Public name -> the file that defines it.
_HOMES = {
    "MATCHINGS": "methods",
    "Losses": "losses",
    "ManyMatching": "many",
    "Matching": "matching",
    "cycle_consistent": "cycle_consistent",
    "l2_reduction": "matching",
    "Sweep": "ascent",
    "merge_many": "merge_many",
    "straight_through_many": "straight_through_many",
    "MatchingMethod": "methods",
    "Trial": "descent",
    "activation_matching": "activations",
    "run_matching": "methods",
    "sinkhorn_rebasin": "rebasin",
    "straight_through": "straight",
    "weight_matching": "weights",
}

__all__ = [
    "MATCHINGS",
    "Losses",
    "ManyMatching",
    "Matching",
    "MatchingMethod",
    "Sweep",
    "Trial",
    "activation_matching",
    "cycle_consistent",
    "l2_reduction",
    "merge_many",
    "run_matching",
    "sinkhorn_rebasin",
    "straight_through",
    "straight_through_many",
    "weight_matching",
]

__getattr__ = resolver(__name__, _HOMES)
