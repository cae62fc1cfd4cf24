"""Matching: permutations that bring one network into the basin of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.matching.losses import Losses
    from weightspace.matching.matching import Matching, l2_reduction
    from weightspace.matching.weights import Sweep, weight_matching

#: Public name -> the file that defines it.
_HOMES = {
    "Losses": "losses",
    "Matching": "matching",
    "l2_reduction": "matching",
    "Sweep": "weights",
    "weight_matching": "weights",
}

__all__ = ["Losses", "Matching", "Sweep", "l2_reduction", "weight_matching"]

__getattr__ = resolver(__name__, _HOMES)
