"""Merges from files to a file, out of core."""
