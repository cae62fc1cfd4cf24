"""SymmetryMatching by the full symmetry of an architecture: rotations of streams and heads beside permutations."""

from weightspace.matching.aligning.alignment import AlignMethod, SymmetryMatching, align

__all__ = ["AlignMethod", "SymmetryMatching", "align"]
