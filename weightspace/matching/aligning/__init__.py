"""Alignment by the full symmetry of an architecture: rotations of streams and heads beside permutations."""

from weightspace.matching.aligning.alignment import AlignMethod, SymmetryMatching, align
from weightspace.matching.aligning.several import ManySymmetryMatching, align_many

__all__ = ["AlignMethod", "ManySymmetryMatching", "SymmetryMatching", "align", "align_many"]
