"""Reasons, as sentences, for the groups whose units are moved by less than was looked for."""

from __future__ import annotations

from typing import Literal

from weightspace.symmetry.kinds.occurrences import Place, leaf_places, occurrences
from weightspace.symmetry.kinds.symmetry_spec import Kind
from weightspace.symmetry.rules.axis_algebra import Atom
from weightspace.symmetry.trace import Walk

#: Operators whose names say too little.
_WORDS = {
    "scaled_dot_product_attention": "the softmax of attention",
    "_softmax": "softmax",
    "add": "an added constant",
    "mul": "a product of units",
    "pow": "a power",
}

#: Maximum number of tensors to name in a sentence.
_NAMED = 3


class Reasons:
    """Sentences about the groups of one walk, from what another walk froze.

    Args:
        by_order: the walk that has the groups.
        walk: the walk whose rules allow more than permutations.
        moved: what these rules allow.
    """

    def __init__(self, by_order: Walk, walk: Walk, moved: Literal["rotations", "signs"]) -> None:
        self.walk = walk
        self.moved = moved
        self.order = {atom: number for number, atom in enumerate(walk.losses.causes)}
        self.held: dict[Atom, list[Place]] = {}
        for place, atom in occurrences(by_order).items():
            self.held.setdefault(atom, []).append(place)

    def of_group(self, name: str, kind: Kind, atom: Atom) -> str | None:
        """Return why a group is of a lower kind than was looked for, or None if it isn't."""
        if kind in ("orthogonal", "phases") or (self.moved == "signs" and kind == "signed"):
            return None
        moved = "only permuted" if kind == "permutation" else "only permuted, with signs"
        return f"{name}: {moved}, because {self._clause(atom)}"

    def of_lost(self, atom: Atom) -> str:
        """Return why units are not moved at all."""
        names = list(dict.fromkeys(place[0] for place in self.held.get(atom, ())))
        further = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"{', '.join(names[:_NAMED])}{further}: units stay in place, because {self._clause(atom)}"

    def _clause(self, atom: Atom) -> str:
        """Return what froze the units of a group first."""
        found: list[tuple[int, str]] = []
        for name, dim, start, stride, _ in self.held[atom]:
            leaves = list(leaf_places(self.walk.tensors[name][dim]))
            exact = [leaf for leaf, *at in leaves if at == [start, stride] and self._cause(leaf)]
            for leaf in exact or [leaf for leaf, *_ in leaves]:
                if cause := self._cause(leaf):
                    found.append((self.order.get(leaf, len(self.order)), cause))
        if not found:
            return "its tensors, or the groups inside it, do not allow more"
        return self._explained(min(found)[1])

    def _cause(self, leaf: Atom) -> str:
        return self.walk.losses.causes.get(leaf) or (leaf.cause or "" if leaf.fixed else "")

    def _explained(self, cause: str) -> str:
        """Return a clause for the name of an operator or a constant."""
        if cause == "a constant" or cause.startswith("the buffer "):
            return f"{cause} tells its units apart"
        return cause if " " in cause else f"{_WORDS.get(cause, cause)} does not commute with {self.moved}"
