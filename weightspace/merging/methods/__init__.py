"""Merge methods, one file per paper, and their table, which can be read without torch."""

from __future__ import annotations

from collections.abc import Mapping

from weightspace.merging.methods._registry import Method, Parameter
from weightspace.merging.methods._table import read_table

#: Name in recipes and on the command line -> row. tests/merging/test_every_method.py checks every one.
METHODS: Mapping[str, Method] = read_table()

__all__ = ["METHODS", "Method", "Parameter"]
