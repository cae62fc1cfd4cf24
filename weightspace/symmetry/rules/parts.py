"""Tensors that are several in one: along one axis, the marker, each unit has axes of its own.

Fused queries, keys and values are such a tensor, and so are the last states of several recurrent layers. As long as
operators treat the parts alike and end in picking them, they are followed one by one; any other operator sees them
together, and then one permutation acts on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.symmetry.axes import Atom, Axis, concat, product, unite

#: A traced tensor: one axis a dimension. Operators with several results return a tuple of these in a list.
Axes = tuple[Axis, ...]

UNCHANGED = {"clone", "contiguous", "alias", "detach", "_to_copy"}
VIEWS = {"view", "reshape", "_unsafe_view", "unflatten"}
#: Operators that are applied to each part on its own.
_FOLLOWED = UNCHANGED | {"permute", "transpose", "unsqueeze", "squeeze"}


@dataclass(frozen=True)
class Parts:
    """A tensor with an axis (``marker``, of two units and more), and the axes for each unit of it."""

    marker: Atom
    alternatives: tuple[Axes, ...]

    @property
    def place(self) -> int:
        """The dimension of the marker."""
        return next(place for place, axis in enumerate(self.alternatives[0]) if axis is self.marker)

    def apply(
        self, name: str, args: dict[str, Any], shape: Sequence[Any], rule: Callable[[Axes], Axes]
    ) -> Parts | Axes | list[Axes] | None:
        """Return what an operator makes of the parts one by one, or None if it sees them together."""
        place, first = self.place, self.alternatives[0]
        if name in _FOLLOWED:
            return Parts(self.marker, tuple(rule(axes) for axes in self.alternatives))
        if name in ("select", "unbind") and args["dim"] % len(first) == place:
            picked = [(*axes[:place], *axes[place + 1 :]) for axes in self.alternatives]
            return picked if name == "unbind" else picked[args["index"]]
        sizes = [axis.size for axis in first]
        flat = self.marker.size * product(*first[place + 1 :]).size
        if name in VIEWS and [*sizes[:place], flat] == list(shape):
            return (*first[:place], concat(*(product(*axes[place + 1 :]) for axes in self.alternatives)))
        return None

    def together(self) -> Axes:
        """Unite the parts, for an operator that cannot tell them apart."""
        first, *others = self.alternatives
        for other in others:
            for a, b in zip(first, other, strict=True):
                unite(a, b)
        return first
