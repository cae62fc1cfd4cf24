"""Rotary embeddings: each pair of a head's dimensions is turned by an angle that depends on the position.

What commutes with all turns of a pair is a turn and a scale: a phase. Only the layout of halves is known, in which
dimensions ``i`` and ``i + d/2`` are a pair: ``q · cos + cat(−q[d/2:], q[:d/2]) · sin``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from weightspace.symmetry.kinds.norms import cast_from
from weightspace.symmetry.rules import name_of


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
    parts = [cast_from(arg) for arg in node.args[:2]]
    if any(part is None or name_of(part.target) != "mul" for part in parts):
        return None
    for plain, turned in (parts, parts[::-1]):
        assert plain is not None
        assert turned is not None
        for joined in turned.args:
            half = _halves(joined)
            if half is None:
                continue
            source, inside = half
            if any(cast_from(arg) is source for arg in plain.args):
                return Rotary(node, source, frozenset({plain, turned, *inside}))
    return None


def _halves(joined: object) -> tuple[fx.Node, set[fx.Node]] | None:
    """Return what ``cat(−x[d/2:], x[:d/2])`` is made from."""
    if not isinstance(joined, fx.Node) or name_of(joined.target) != "cat":
        return None
    parts = joined.args[0]
    if not isinstance(parts, list | tuple) or len(parts) != 2 or name_of(parts[0].target) != "neg":
        return None
    second, first = parts[0].args[0], parts[1]
    if name_of(second.target) != "slice" or name_of(first.target) != "slice":
        return None
    size = first.args[0].meta["val"].shape[-1]
    same = cast_from(first.args[0]) is cast_from(second.args[0])
    if same and list(first.args[2:4]) == [0, size // 2] and second.args[2] == size // 2:
        source = cast_from(first.args[0])
        assert source is not None
        return source, {joined, parts[0], first, second}
    return None
