"""Matching: permutations and larger symmetries that bring one network into the basin of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.matching.activation_matching import activation_matching, match_activations
    from weightspace.matching.aligning import ManySymmetryMatching, SymmetryMatching, align, align_many
    from weightspace.matching.cycle_consistent import cycle_consistent
    from weightspace.matching.loss_driven import Losses
    from weightspace.matching.merge_many import merge_many
    from weightspace.matching.multi_model import ManyMatching
    from weightspace.matching.registry import MANY_MATCHINGS, MATCHINGS, MatchingMethod, match, match_many
    from weightspace.matching.result import Matching, l2_reduction
    from weightspace.matching.sinkhorn_rebasin import sinkhorn_rebasin
    from weightspace.matching.straight_through import straight_through
    from weightspace.matching.straight_through_many import straight_through_many
    from weightspace.matching.weight_matching import weight_matching

#: Public name -> the file that defines it.
_HOMES = {
    "MANY_MATCHINGS": "registry",
    "MATCHINGS": "registry",
    "Losses": "loss_driven",
    "ManyMatching": "multi_model",
    "ManySymmetryMatching": "aligning",
    "Matching": "result",
    "MatchingMethod": "registry",
    "SymmetryMatching": "aligning",
    "activation_matching": "activation_matching",
    "align": "aligning",
    "align_many": "aligning",
    "cycle_consistent": "cycle_consistent",
    "l2_reduction": "result",
    "match": "registry",
    "match_activations": "activation_matching",
    "match_many": "registry",
    "merge_many": "merge_many",
    "sinkhorn_rebasin": "sinkhorn_rebasin",
    "straight_through": "straight_through",
    "straight_through_many": "straight_through_many",
    "weight_matching": "weight_matching",
}

__all__ = [
    "MANY_MATCHINGS",
    "MATCHINGS",
    "Losses",
    "ManyMatching",
    "ManySymmetryMatching",
    "Matching",
    "MatchingMethod",
    "SymmetryMatching",
    "activation_matching",
    "align",
    "align_many",
    "cycle_consistent",
    "l2_reduction",
    "match",
    "match_activations",
    "match_many",
    "merge_many",
    "sinkhorn_rebasin",
    "straight_through",
    "straight_through_many",
    "weight_matching",
]

__getattr__ = resolver(__name__, _HOMES)
