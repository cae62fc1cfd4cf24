"""Elementwise combinations of networks, shared by means, straight lines and merges."""
