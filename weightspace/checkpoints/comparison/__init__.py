"""Comparison of two checkpoints, whatever they are stored in."""
