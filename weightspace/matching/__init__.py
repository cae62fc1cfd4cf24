"""Matching: permutations that bring one network into the basin of another."""

from weightspace.matching.weights import Matching, Sweep, l2_reduction, weight_matching

__all__ = ["Matching", "Sweep", "l2_reduction", "weight_matching"]
