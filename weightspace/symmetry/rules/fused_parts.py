"""Tensors that are several in one: along one axis, the marker, each unit has axes of its own.

Fused queries, keys and values are such a tensor, and so are the last states of several recurrent layers. As long as
operators treat the parts alike and end in picking them, they are followed one by one (see ``symmetry.parts``); any
other operator sees them together, and then one permutation acts on all.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, unite

#: A traced tensor: one axis a dimension. Operators with several results return a tuple of these in a list.
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Parts:
    """A tensor with an axis (``marker``, of two units and more), and the axes for each unit of it."""

    marker: Atom
    alternatives: tuple[Axes, ...]

    @property
    def place(self) -> int:
        """The dimension of the marker."""
        return next(place for place, axis in enumerate(self.alternatives[0]) if axis is self.marker)

    @property
    def sizes(self) -> list[int]:
        """The shape of the tensor."""
        return [axis.size for axis in self.alternatives[0]]

    def together(self) -> Axes:
        """Unite the parts, for an operator that cannot tell them apart."""
        first, *others = self.alternatives
        for other in others:
            for a, b in zip(first, other, strict=True):
                unite(a, b)
        return first
