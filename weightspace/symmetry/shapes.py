"""Shapes of the values in a graph, as plain integers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Shape = tuple[int, ...]

#: Data-dependent sizes (such as the number of tokens of an expert) have placeholders, which no real axis has: one per
#: symbol, so that equal sizes stay equal and their products can be factorised.
_STAND_IN = 1_000_003


def shapes_of(value: Any) -> Shape | list[Shape] | None:
    """Return the shape of a tensor, those of several, or None for anything else."""
    if isinstance(value, Tensor):
        return shape_of(value)
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return [shape_of(item) if isinstance(item, Tensor) else () for item in value]
    return None


def shape_of(value: Any) -> Shape:
    """Return the shape of a tensor, () for anything else."""
    return tuple(map(_size, getattr(value, "shape", ())))


def _size(size: Any) -> int:
    expression = None if isinstance(size, int) else size.node.expr
    if expression is None:
        return int(size)
    symbols = sorted(expression.free_symbols, key=str)
    return int(expression.subs({symbol: _STAND_IN + 1000 * _number(symbol) for symbol in symbols}))


def _number(symbol: Any) -> int:
    return int("".join(letter for letter in str(symbol) if letter.isdigit()) or 0)
