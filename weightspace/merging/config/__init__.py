"""Configurations of models: the values that follow their layers."""
