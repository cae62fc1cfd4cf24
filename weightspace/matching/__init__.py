"""Matching: permutations that bring one network into the basin of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.matching.activations import activation_matching
    from weightspace.matching.ascent import Sweep
    from weightspace.matching.descent import Trial
    from weightspace.matching.losses import Losses
    from weightspace.matching.many import ManyMatching
    from weightspace.matching.matching import Matching, l2_reduction
    from weightspace.matching.methods import MANY_MATCHINGS, MATCHINGS, MatchingMethod, run_many, run_matching
    from weightspace.matching.mixtures import straight_through_many
    from weightspace.matching.rebasin import sinkhorn_rebasin
    from weightspace.matching.straight import straight_through
    from weightspace.matching.turns import merge_many
    from weightspace.matching.universe import Step, cycle_consistent
    from weightspace.matching.weights import weight_matching

#: Public name -> the file that defines it.
_HOMES = {
    "MANY_MATCHINGS": "methods",
    "MATCHINGS": "methods",
    "Losses": "losses",
    "ManyMatching": "many",
    "Matching": "matching",
    "MatchingMethod": "methods",
    "Step": "universe",
    "Sweep": "ascent",
    "Trial": "descent",
    "activation_matching": "activations",
    "cycle_consistent": "universe",
    "l2_reduction": "matching",
    "merge_many": "turns",
    "run_many": "methods",
    "run_matching": "methods",
    "sinkhorn_rebasin": "rebasin",
    "straight_through": "straight",
    "straight_through_many": "mixtures",
    "weight_matching": "weights",
}

__all__ = [
    "MANY_MATCHINGS",
    "MATCHINGS",
    "Losses",
    "ManyMatching",
    "Matching",
    "MatchingMethod",
    "Step",
    "Sweep",
    "Trial",
    "activation_matching",
    "cycle_consistent",
    "l2_reduction",
    "merge_many",
    "run_many",
    "run_matching",
    "sinkhorn_rebasin",
    "straight_through",
    "straight_through_many",
    "weight_matching",
]

__getattr__ = resolver(__name__, _HOMES)
