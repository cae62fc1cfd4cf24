"""Reading the graph of a network backwards and forwards, casts and copies followed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from weightspace.symmetry.rules import name_of
from weightspace.symmetry.rules.operators import PASS_THROUGH


def cast_from(node: object) -> fx.Node | None:
    """Return the node that a value is a cast or copy of, which may be itself; None for other arguments."""
    while isinstance(node, fx.Node) and name_of(node.target) in PASS_THROUGH:
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None


def operand(node: fx.Node, place: int, *names: str) -> fx.Node | None:
    """Return what an argument is a cast of, or None if it isn't there or not the result of one of the operators."""
    found = cast_from(node.args[place]) if place < len(node.args) else None
    return found if found is not None and (not names or name_of(found.target) in names) else None


def operands(node: fx.Node) -> list[fx.Node]:
    """Return what the arguments are casts of, numbers left out."""
    return [found for arg in node.args if (found := cast_from(arg)) is not None]


def users(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what uses a value or a cast of it, assertions left out."""
    for user in node.users:
        if name_of(user.target) in PASS_THROUGH:
            yield from users(user)
        elif user.op == "output" or user.meta.get("val") is not None:
            yield user
