"""Slices of layers put on top of one another."""
