"""Lazy import of a row's functions, the first part of a merge that needs torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from weightspace.merging.methods._registry import Method
from weightspace.user_code import is_user_code


def load_function(row: Method) -> Callable[..., Any]:
    """Import the method's function: ``function(stack, weights, **parameters) -> formula``."""
    if is_user_code(row.function):
        from weightspace.merging.methods._user import load_user_method

        return load_user_method(row.function)
    return _load(row.function)


def load_global_pass(row: Method) -> Callable[..., Any] | None:
    """Import the method's pass over the whole model, if it has one.

    ``global_pass(stacks, arguments)`` takes the stacks of all float tensors in the order of their names and the keyword
    arguments of the function for each, and returns additions to these by name of the tensor.
    """
    return _load(row.global_pass) if row.global_pass else None


@cache
def _load(place: str) -> Callable[..., Any]:
    """Import ``file:function`` from this package."""
    file, _, name = place.partition(":")
    return getattr(importlib.import_module(f"weightspace.merging.methods.{file}"), name)
