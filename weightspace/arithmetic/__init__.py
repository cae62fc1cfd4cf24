"""Elementwise combinations of networks, which means, straight lines and merges share."""
