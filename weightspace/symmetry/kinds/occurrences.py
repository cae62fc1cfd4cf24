"""Places of atoms in tensors: the same places are compared between walks under different rules."""

from __future__ import annotations

from collections.abc import Iterator

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, Product, resolve
from weightspace.symmetry.trace import Walk

#: Tensor, axis, first unit, distance of units, number of units.
Place = tuple[str, int, int, int, int]


def places(axis: Axis, start: int = 0, stride: int = 1) -> Iterator[tuple[Atom, int, int]]:
    """Yield the atoms of an axis with their first unit and the distance of units."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis, start, stride
    elif isinstance(axis, Product):
        for factor in reversed(axis.factors):
            yield from places(factor, start, stride)
            stride *= factor.size
    else:
        for term in axis.terms:
            yield from places(term, start, stride)
            start += term.size * stride


def occurrences(walk: Walk) -> dict[Place, Atom]:
    """Return the atom at each place of the tensors."""
    return {
        (name, dim, start, stride, atom.size): atom
        for name, axes in walk.tensors.items()
        for dim, axis in enumerate(axes)
        for atom, start, stride in places(axis)
    }


def leaf_places(axis: Axis, start: int = 0, stride: int = 1) -> Iterator[tuple[Atom, int, int]]:
    """Yield the atoms of an axis as ``places`` does, with adjacent fixed ones separate."""
    while isinstance(axis, Atom):
        if axis.bound is None:
            yield axis, start, stride
            return
        axis = axis.bound
    if isinstance(axis, Product):
        for factor in reversed(axis.factors):
            yield from leaf_places(factor, start, stride)
            stride *= factor.size
    else:
        for term in axis.terms:
            yield from leaf_places(term, start, stride)
            start += term.size * stride
