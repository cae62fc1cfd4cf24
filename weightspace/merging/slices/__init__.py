"""Stacking of slices of layers."""
