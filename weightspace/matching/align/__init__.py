"""Alignment by the full symmetry of an architecture: rotations of streams and heads beside permutations."""

from weightspace.matching.align.alignment import Alignment, AlignMethod, align

__all__ = ["AlignMethod", "Alignment", "align"]
