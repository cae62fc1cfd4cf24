"""Operators that break symmetries, and the tensors whose units they fix.

An operator may freeze units because it has no rule, because it depends on their order, or because it distinguishes
them. Units that are fixed by nature (inputs and outputs, positions, kernels, vocabularies) are not a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightspace.symmetry.rules import Axes, Call, is_axes
from weightspace.symmetry.rules.axis_algebra import Atom, Axis, freeze, leaves
from weightspace.symmetry.rules.call import Parts
from weightspace.symmetry.rules.operators import CUTS


class Losses:
    """Records of frozen units, each an operator and its tensors: ``cumsum: a.weight, a.bias``.

    Args:
        tensors: the axes of all tensors encountered so far.
    """

    def __init__(self, tensors: Mapping[str, Axes]) -> None:
        self.tensors = tensors
        self.notes: list[str] = []
        #: Lost unit -> its cause, in the order of the graph.
        self.causes: dict[Atom, str] = {}

    def settle(self, call: Call, free: Iterable[Atom]) -> None:
        """Record which previously free atoms a call froze, and name it as their cause."""
        if _takes_out_one(call):
            for atom in free:
                if all(unit.size == 1 for unit in leaves(atom)):  # the last one: every unit is now distinguished
                    freeze(atom)
        lost: dict[str, list[Atom]] = {}
        for unit in (unit for atom in free for unit in leaves(atom)):
            if unit.fixed and unit.cause != "":
                lost.setdefault(unit.cause or call.name, []).append(unit)
                self.causes.setdefault(unit, unit.cause or call.name)
        for cause, units in lost.items():
            names = self._holders(units)
            self.add(cause, names)
            for unit in units:
                unit.cause = "" if names else cause

    def unite(self, call: Call) -> None:
        """Record the parts of tensors that a call is about to treat as one, if they had separate units."""
        for value in (item for arg in call.args.values() for item in (arg if isinstance(arg, list) else [arg])):
            if isinstance(value, Parts):
                units = [set(free_units(axes)) for axes in value.alternatives]
                self.add(call.name, self._holders(set.union(*units) - set.intersection(*units)))

    def add(self, cause: str, names: Sequence[str]) -> None:
        """Record the cause that froze the named tensors, once."""
        note = f"{cause}: {', '.join(names)}"
        if names and note not in self.notes:
            self.notes.append(note)

    def _holders(self, units: Iterable[Atom]) -> list[str]:
        wanted = set(units)
        return [name for name, axes in self.tensors.items() if any(wanted & set(leaves(axis)) for axis in axes)]


def _takes_out_one(call: Call) -> bool:
    """Return whether a call cuts single units off an axis."""
    x: Any = call.args.get("self")  # parts aren't axes, and may be taken apart
    if call.name not in CUTS or not call.shape or not is_axes(x):
        return False
    shapes = call.shape if isinstance(call.shape, list) else [call.shape]
    return len(shapes[0]) == len(x) and any(shape[call.args["dim"] % len(x)] == 1 for shape in shapes)


def free_units(axes: Iterable[Axis]) -> list[Atom]:
    """Return the atoms of at least two units that may still be permuted."""
    listed = (atom for axis in axes for atom in leaves(axis))
    return list(dict.fromkeys(atom for atom in listed if not atom.fixed and atom.size > 1))
