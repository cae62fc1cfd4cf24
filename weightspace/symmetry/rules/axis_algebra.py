"""The algebra of axes during tracing: atoms that are united, and refined when a boundary cuts them.

An axis is a tree: an ``Atom``, a ``Product`` of axes (row-major, ``(heads dim)``) or a ``Sum`` of concatenated axes
(``a + b``). Uniting two axes means that one permutation acts on both; what can't be expressed is frozen, which is
always safe: a frozen atom is never permuted.

A frozen atom carries its cause: ``""`` if no symmetry is lost (inputs, positions, a vocabulary), a name that is
reported when hidden units meet the atom, or None while the operator that froze it is being processed (see ``losses``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

Axis = Union["Atom", "Product", "Sum"]


@dataclass(frozen=True, eq=False)
class Choice:
    """An index tensor whose values are units of ``units``: each position along its ``dims`` belongs to one of them."""

    units: Axis
    dims: int


class Atom:
    """A set of units permuted together; ``bound`` after it was united with, or refined into, another axis.

    A fixed atom may be one of the axes of a ``choice``, along which units of another axis were looked up.
    """

    __slots__ = ("bound", "cause", "choice", "fixed", "size")

    def __init__(self, size: int, *, fixed: bool = False, cause: str | None = "", choice: Choice | None = None) -> None:
        self.size = size
        self.fixed = fixed
        self.cause = cause
        self.choice = choice
        self.bound: Axis | None = None


class Product:
    """Factors in row-major order: the unit ``(i, j)`` of ``(a b)`` is at ``i * len(b) + j``."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Axis, ...]) -> None:
        self.factors = factors
        self.size = math.prod(factor.size for factor in factors)


class Sum:
    """Concatenated terms, as in ``torch.cat``."""

    __slots__ = ("size", "terms")

    def __init__(self, terms: tuple[Axis, ...]) -> None:
        self.terms = terms
        self.size = sum(term.size for term in terms)


def fixed(size: int, cause: str | None = "") -> Atom:
    """Return an atom that is never permuted."""
    return Atom(size, fixed=True, cause=cause)


def product(*factors: Axis) -> Axis:
    """Return the row-major product in its simplest form: flat, without ones, with adjacent fixed atoms merged."""
    flat: list[Axis] = []
    for factor in map(resolve, factors):
        for part in factor.factors if isinstance(factor, Product) else (factor,):
            if part.size == 1:
                continue
            if flat and is_fixed(flat[-1]) and is_fixed(part):
                flat[-1] = fixed(flat[-1].size * part.size, _joint_cause(flat[-1], part))
            else:
                flat.append(part)
    return flat[0] if len(flat) == 1 else Product(tuple(flat)) if flat else fixed(1)


def concat(*terms: Axis) -> Axis:
    """Return the concatenation in its simplest form: flat, without empty terms, with adjacent fixed atoms merged."""
    flat: list[Axis] = []
    for term in map(resolve, terms):
        for part in term.terms if isinstance(term, Sum) else (term,):
            if part.size == 0:
                continue
            if flat and is_fixed(flat[-1]) and is_fixed(part):
                flat[-1] = fixed(flat[-1].size + part.size, _joint_cause(flat[-1], part))
            else:
                flat.append(part)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat)) if flat else fixed(0)


def _joint_cause(*frozen: Axis) -> str | None:
    """Return the cause to report for fixed atoms that are merged."""
    causes = [atom.cause for atom in frozen if isinstance(atom, Atom)]
    return None if None in causes else next(filter(None, causes), "")


def resolve(axis: Axis) -> Axis:
    """Return the current form of an axis: bindings followed, simplified."""
    while isinstance(axis, Atom):
        if axis.bound is None:
            return axis if axis.size != 1 or axis.fixed else fixed(1)
        axis = axis.bound
    return product(*axis.factors) if isinstance(axis, Product) else concat(*axis.terms)


def is_fixed(axis: Axis) -> bool:
    """Return whether a resolved axis is one fixed atom."""
    return isinstance(axis, Atom) and axis.fixed


def atoms(axis: Axis) -> Iterator[Atom]:
    """Yield the atoms of an axis from left to right, with repetitions."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis
    else:
        for part in axis.factors if isinstance(axis, Product) else axis.terms:
            yield from atoms(part)


def leaves(axis: Axis) -> Iterator[Atom]:
    """Yield the atoms of an axis unmerged, with adjacent fixed ones separate."""
    while isinstance(axis, Atom):
        if axis.bound is None:
            yield axis
            return
        axis = axis.bound
    for part in axis.factors if isinstance(axis, Product) else axis.terms:
        yield from leaves(part)


def freeze(axis: Axis, cause: str | None = None) -> None:
    """Forbid every permutation of an axis; the default cause is the current operator, ``""`` loses no symmetry."""
    for atom in leaves(axis):
        if not atom.fixed:
            atom.fixed, atom.cause = True, cause


def cause_of(axis: Axis) -> str | None:
    """Return the cause of a fixed axis."""
    axis = resolve(axis)
    return axis.cause if isinstance(axis, Atom) else ""


def unite(a: Axis, b: Axis) -> None:
    """Make one permutation act on two axes of equal size, refining both if their boundaries differ."""
    a, b = resolve(a), resolve(b)
    if a is b or (is_fixed(a) and is_fixed(b)):
        return
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} units cannot share a permutation")
    if is_fixed(a):
        freeze(b, cause_of(a))
    elif is_fixed(b):
        freeze(a, cause_of(b))
    elif isinstance(a, Atom):
        a.bound = b
    elif isinstance(b, Atom):
        b.bound = a
    elif isinstance(a, Product) and isinstance(b, Product):
        _unite_products(a, b)
    else:
        boundary = min(axis.terms[0].size for axis in (a, b) if isinstance(axis, Sum))
        (left_a, right_a), (left_b, right_b) = cut(a, boundary), cut(b, boundary)
        unite(left_a, left_b)
        unite(right_a, right_b)


def _unite_products(a: Product, b: Product) -> None:
    outer = min(a.factors[0].size, b.factors[0].size)
    parts_a, parts_b = split(a, outer), split(b, outer)
    if parts_a is None or parts_b is None:
        freeze(a)
        freeze(b)
    else:
        unite(parts_a[0], parts_b[0])
        unite(parts_a[1], parts_b[1])


def _like(atom: Atom, size: int) -> Atom:
    """Return an atom of another size with the same freedom."""
    return Atom(size, fixed=atom.fixed, cause=atom.cause)


def split(axis: Axis, outer: int) -> tuple[Axis, Axis] | None:
    """View an axis as ``(outer inner)`` and return both, or None if the boundaries don't allow it."""
    axis = resolve(axis)
    if outer == 1:
        return fixed(1), axis
    if axis.size == outer:
        return axis, fixed(1)
    if axis.size % outer:
        return None
    inner = axis.size // outer
    if isinstance(axis, Atom):
        parts = _like(axis, outer), _like(axis, inner)
        if not axis.fixed:
            axis.bound = Product(parts)
        return parts
    if isinstance(axis, Product):
        return _split_product(axis, outer)
    if any(term.size % inner for term in axis.terms):
        return None
    halves = [split(term, term.size // inner) for term in axis.terms]
    if any(half is None for half in halves):
        return None
    known = [half for half in halves if half is not None]
    for _, other in known[1:]:
        unite(known[0][1], other)
    return concat(*(half[0] for half in known)), resolve(known[0][1])


def _split_product(axis: Product, outer: int) -> tuple[Axis, Axis] | None:
    first, rest = axis.factors[0], product(*axis.factors[1:])
    if outer == first.size:
        return first, rest
    if outer < first.size:
        halves = split(first, outer)
        return halves and (halves[0], product(halves[1], rest))
    if outer % first.size:
        return None
    halves = split(rest, outer // first.size)
    return halves and (product(first, halves[0]), halves[1])


def cut(axis: Axis, position: int) -> tuple[Axis, Axis]:
    """Return the first ``position`` units of an axis and the rest, refining it at the cut."""
    axis = resolve(axis)
    if position in (0, axis.size):
        return (fixed(0), axis) if position == 0 else (axis, fixed(0))
    if isinstance(axis, Atom):
        parts = _like(axis, position), _like(axis, axis.size - position)
        if not axis.fixed:
            axis.bound = Sum(parts)
        return parts
    if isinstance(axis, Sum):
        return _cut_sum(axis, position)
    first, rest = axis.factors[0], product(*axis.factors[1:])
    whole, part = divmod(position, rest.size)
    if part == 0:
        left, right = cut(first, whole)
        return product(left, rest), product(right, rest)
    before, others = cut(first, whole)  # the cut goes through the next unit
    after = cut(others, 1)[1]
    left, right = cut(rest, part)
    rest = resolve(rest)
    return concat(product(before, rest), left), concat(right, product(after, rest))


def _cut_sum(axis: Sum, position: int) -> tuple[Axis, Axis]:
    start = 0
    for index, term in enumerate(axis.terms):
        if position < start + term.size:
            left, right = cut(term, position - start)
            return concat(*axis.terms[:index], left), concat(right, *axis.terms[index + 1 :])
        start += term.size
    raise AssertionError("the position lies inside the axis")
