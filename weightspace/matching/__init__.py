"""Matching: permutations that bring one network into the basin of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.matching.activations import activation_matching
    from weightspace.matching.ascent import Sweep
    from weightspace.matching.descent import Trial
    from weightspace.matching.losses import Losses
    from weightspace.matching.matching import Matching, l2_reduction
    from weightspace.matching.methods import MATCHINGS, MatchingMethod, run_matching
    from weightspace.matching.rebasin import sinkhorn_rebasin
    from weightspace.matching.straight import straight_through
    from weightspace.matching.weights import weight_matching

#: Public name -> the file that defines it.
_HOMES = {
    "MATCHINGS": "methods",
    "Losses": "losses",
    "Matching": "matching",
    "MatchingMethod": "methods",
    "Sweep": "ascent",
    "Trial": "descent",
    "activation_matching": "activations",
    "l2_reduction": "matching",
    "run_matching": "methods",
    "sinkhorn_rebasin": "rebasin",
    "straight_through": "straight",
    "weight_matching": "weights",
}

__all__ = [
    "MATCHINGS",
    "Losses",
    "Matching",
    "MatchingMethod",
    "Sweep",
    "Trial",
    "activation_matching",
    "l2_reduction",
    "run_matching",
    "sinkhorn_rebasin",
    "straight_through",
    "weight_matching",
]

__getattr__ = resolver(__name__, _HOMES)
