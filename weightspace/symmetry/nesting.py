"""Groups: their names, and which of them may have a separate permutation for each unit of another group.

Attention permutes the dimensions of each head separately, a grouped convolution the channels of each of its groups.
Group ``inner`` may nest in ``outer`` if, wherever its units appear, the unit of ``outer`` that they belong to appears
next to them, and no operator combines units of ``outer`` while it keeps those of ``inner`` apart. If units of ``outer``
were looked up (the experts selected by a router), the axes of the indices stand for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, Product, Sum, atoms, resolve

#: The atoms of a part of a tensor in which every dimension is one atom, each with its axis number.
_Block = list[tuple[Atom, int]]


@dataclass
class Event:
    """A tensor in the graph; its first ``reduced`` axes were combined by an operator."""

    axes: Sequence[Axis]
    reduced: int = 0

    @cached_property
    def blocks(self) -> list[_Block]:
        """The parts in which every dimension is one atom; computed after the graph was traversed."""
        return list(_blocks(list(enumerate(self.axes))))


def _blocks(dims: list[tuple[int, Axis]]) -> Iterator[_Block]:
    for place, (number, axis) in enumerate(dims):
        axis = resolve(axis)
        if isinstance(axis, Product):
            yield from _blocks([*dims[:place], *((number, one) for one in axis.factors), *dims[place + 1 :]])
            return
        if isinstance(axis, Sum):
            for term in axis.terms:
                yield from _blocks([*dims[:place], (number, term), *dims[place + 1 :]])
            return
        dims[place] = (number, axis)
    yield [(axis, number) for number, axis in dims if isinstance(axis, Atom)]


def nest(groups: Sequence[Atom], events: Sequence[Event]) -> dict[Atom, Atom]:
    """Return inner atom -> outer atom for every group that may nest; nesting is one level deep.

    Args:
        groups: the atoms that are groups, in order.
        events: every tensor of the graph, and every one with axes combined by an operator.
    """
    wanted = set(groups)
    by_atom: dict[Atom, list[Event]] = {atom: [] for atom in groups}
    for event in events:
        for atom in {atom for axis in event.axes for atom in atoms(axis)} & wanted:
            by_atom[atom].append(event)
    result: dict[Atom, Atom] = {}
    for inner in groups:
        first = next(block for block in by_atom[inner][0].blocks if any(atom is inner for atom, _ in block))
        for outer in dict.fromkeys(atom for atom, _ in first if atom in wanted and atom is not inner):
            free = outer not in result and inner not in result.values()
            if free and all(_governed(event, inner, outer) for event in by_atom[inner]):
                result[inner] = outer
                break
    return result


def _governed(event: Event, inner: Atom, outer: Atom) -> bool:
    for block in event.blocks:
        for place, (atom, axis) in enumerate(block):
            if atom is not inner:
                continue
            governors = _governors(block, place, outer)
            if not governors or any(governor < event.reduced <= axis for governor in governors):
                return False
    return True


def _governors(block: _Block, place: int, outer: Atom) -> list[int]:
    """Return the axes whose units determine the row of the inner permutation, or none if that is ambiguous."""
    axes = [axis for atom, axis in block if atom is outer]
    beside = [axis for atom, axis in block[:place] if atom is outer and axis == block[place][1]]
    choices = {atom.choice for atom, _ in block if atom.choice and outer in _factors(atom.choice.units)}
    if not choices:
        return beside[-1:] or (axes if len(axes) == 1 else [])
    chosen = [axis for atom, axis in block if atom.choice in choices]
    return chosen if len(choices) == 1 and not axes and len(chosen) == next(iter(choices)).dims else []


def _factors(axis: Axis) -> tuple[Axis, ...]:
    axis = resolve(axis)
    return axis.factors if isinstance(axis, Product) else (axis,)


def name_groups(tensors: Mapping[str, Sequence[Axis]]) -> dict[Atom, str]:
    """Name the free atoms of at least two units, in the order of the tensors.

    Several groups that first appear in the same layer are distinguished by ``/2`` and so on.
    """
    homes: dict[Atom, str] = {}
    for name, axes in tensors.items():
        for atom in (atom for axis in axes for atom in atoms(axis)):
            if not atom.fixed and atom.size > 1:
                homes.setdefault(atom, _layer(name))
    taken: dict[str, int] = {}
    result: dict[Atom, str] = {}
    for atom, home in homes.items():
        taken[home] = taken.get(home, 0) + 1
        result[atom] = home if taken[home] == 1 else f"{home}/{taken[home]}"
    return result


def _layer(tensor: str) -> str:
    """Return the layer that a tensor belongs to, never a bare number (which is a size in a pattern)."""
    layer = tensor.rpartition(".")[0] or tensor
    return f"layer.{layer}" if layer.isdigit() else layer
