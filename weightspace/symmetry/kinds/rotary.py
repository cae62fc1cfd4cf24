"""Rotary embeddings: each pair of a head's dimensions is turned by an angle that depends on the position.

What commutes with all turns of a pair is a turn and a scale: a phase. Only the layout of halves is known, in which
dimensions ``i`` and ``i + d/2`` are a pair: ``q · cos + cat(−q[d/2:], q[:d/2]) · sin``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from weightspace.symmetry.kinds.graph import cast_from, operand, operands
from weightspace.symmetry.rules import name_of
from weightspace.symmetry.shapes import shape_of


@dataclass(frozen=True)
class Rotary:
    """One application of a rotary embedding.

    Attributes:
        output: the node with the result.
        source: the node that is turned.
        inside: nodes between the two.
    """

    output: fx.Node
    source: fx.Node
    inside: frozenset[fx.Node]


def rotary_at(node: fx.Node) -> Rotary | None:
    """Return the rotary embedding whose result a node is, or None."""
    if name_of(node.target) != "add":
        return None
    first, second = operand(node, 0, "mul"), operand(node, 1, "mul")
    if first is None or second is None:
        return None
    for plain, turned in ((first, second), (second, first)):
        for joined in operands(turned):
            source, inside = _halves(joined)
            if source is not None and source in operands(plain):
                return Rotary(node, source, frozenset({plain, turned, *inside}))
    return None


def _halves(joined: fx.Node) -> tuple[fx.Node | None, set[fx.Node]]:
    """Return what ``cat(−x[d/2:], x[:d/2])`` is made from, and the nodes between."""
    parts = joined.args[0] if name_of(joined.target) == "cat" else ()
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        return None, set()
    negative, first = map(cast_from, parts)
    second = None if negative is None or name_of(negative.target) != "neg" else operand(negative, 0, "slice")
    if negative is None or second is None or first is None or name_of(first.target) != "slice":
        return None, set()
    source = operand(first, 0)
    if source is None or source is not operand(second, 0):
        return None, set()
    size = shape_of(source.meta["val"])[-1]
    rank = len(shape_of(source.meta["val"]))
    halves = [first.args[2:4] == (0, size // 2), second.args[2] == size // 2]
    along = {dim % rank for dim in (first.args[1], second.args[1]) if isinstance(dim, int)} == {rank - 1}
    return (source, {joined, negative, first, second}) if all(halves) and along else (None, set())
