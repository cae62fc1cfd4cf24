"""Recipes: what to merge and how, in mergekit's YAML."""
