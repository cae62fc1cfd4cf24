"""Larger symmetries than permutations: which groups also have signs, rotations, or phases."""
