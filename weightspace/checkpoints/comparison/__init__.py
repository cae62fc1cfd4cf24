"""Comparison of two checkpoints of any format."""
