"""Axis patterns: the composition of one axis of a tensor from groups, as data and as text.

``conv1``            all units of group ``conv1``
``64``               64 fixed units, which are never permuted
``(conv1 49)``       a row-major product: 49 consecutive positions for each unit of ``conv1``
``(a + b + 3)``      a concatenation: the units of ``a``, those of ``b``, three fixed ones
``(heads [inner])``  a separate permutation of ``inner`` for each unit of ``heads``
``±mlp``             units of a signed group, whose signs change with it; without ``±`` they are only permuted
``mlp*``             units that a map ``M`` of the group moves by ``M⁻ᵀ``, the inverse transpose
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from weightspace.errors import SpecError


@dataclass(frozen=True)
class Fixed:
    """Units that are never permuted."""

    size: int


@dataclass(frozen=True)
class Units:
    """All units of a group; ``inner`` groups have a permutation for each unit of their outer group.

    Attributes:
        group: name of the group.
        inner: whether it is inside the group before it.
        signed: whether the units change their signs with the group.
        dual: whether a map moves the units by its inverse transpose; no difference for orthogonal maps.
    """

    group: str
    inner: bool = False
    signed: bool = False
    dual: bool = False


@dataclass(frozen=True)
class Product:
    """Factors in row-major order."""

    factors: tuple[Pattern, ...]


@dataclass(frozen=True)
class Concat:
    """Concatenated terms."""

    terms: tuple[Pattern, ...]


Pattern = Fixed | Units | Product | Concat

#: Maximum depth of brackets, and maximum number of tokens in a pattern.
_MAX_DEPTH = 20
_MAX_TOKENS = 10_000

#: Maximum units of an axis, the limit of a tensor.
MAX_UNITS = 2**63 - 1

_TOKEN = re.compile(r"\s*([()+]|±?\[[^\s()+\[\]]+\]\*?|[^\s()+\[\]]+)")
_UNITS = re.compile(r"(±?)(\[?)([^±\[\]*]+)\]?(\*?)")


def size_of(pattern: Pattern, groups: Mapping[str, int]) -> int:
    """Return the number of units of an axis."""
    if isinstance(pattern, Fixed):
        return pattern.size
    if isinstance(pattern, Units):
        return groups[pattern.group]
    if isinstance(pattern, Concat):
        return sum(size_of(term, groups) for term in pattern.terms)
    size = 1
    for factor in pattern.factors:
        size *= size_of(factor, groups)
    return size


def units_in(pattern: Pattern) -> Iterator[Units]:
    """Yield the groups of a pattern from left to right."""
    if isinstance(pattern, Units):
        yield pattern
    elif isinstance(pattern, Product | Concat):
        for part in pattern.factors if isinstance(pattern, Product) else pattern.terms:
            yield from units_in(part)


def format_axes(axes: tuple[Pattern, ...]) -> str:
    """Format the axes of a tensor as text."""
    return " ".join(_format(axis) for axis in axes)


def _format(pattern: Pattern) -> str:
    if isinstance(pattern, Fixed):
        return str(pattern.size)
    if isinstance(pattern, Units):
        name = f"[{pattern.group}]" if pattern.inner else pattern.group
        return "±" * pattern.signed + name + "*" * pattern.dual
    if isinstance(pattern, Product):
        return "(" + " ".join(_format(factor) for factor in pattern.factors) + ")"
    bare = (
        " ".join(_format(factor) for factor in term.factors) if isinstance(term, Product) else _format(term)
        for term in pattern.terms
    )
    return "(" + " + ".join(bare) + ")"


def parse_axes(text: str) -> tuple[Pattern, ...]:
    """Parse the axes of a tensor from text.

    Raises:
        SpecError: unbalanced brackets, or an empty term.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise SpecError(f"The pattern {text!r} must consist of names, numbers, brackets and '+'.")
    if len(tokens) > _MAX_TOKENS:
        raise SpecError(f"The pattern {text!r} has {len(tokens):,} parts; expected at most {_MAX_TOKENS:,}.")
    terms, at = _parse_terms(tokens, 0, text, 0)
    if at < len(tokens) or len(terms) > 1:
        raise SpecError(f"The pattern {text!r} has a ')' or '+' outside of brackets.")
    return tuple(terms[0])


def _parse_terms(tokens: list[str], at: int, text: str, depth: int) -> tuple[list[list[Pattern]], int]:
    """Return the terms from a token up to the closing bracket, and the position of the latter."""
    if depth > _MAX_DEPTH:
        raise SpecError(f"The pattern {text!r} has more than {_MAX_DEPTH} nested brackets.")
    terms: list[list[Pattern]] = [[]]
    while at < len(tokens) and tokens[at] != ")":
        token = tokens[at]
        at += 1
        if token == "+":
            terms.append([])
        elif token == "(":
            inside, at = _parse_terms(tokens, at, text, depth + 1)
            if at == len(tokens) or any(not term for term in inside):
                raise SpecError(f"The pattern {text!r} has an unclosed '(' or an empty term.")
            at += 1
            parts = [term[0] if len(term) == 1 else Product(tuple(term)) for term in inside]
            terms[-1].append(parts[0] if len(parts) == 1 else Concat(tuple(parts)))
        elif token.isdecimal():
            terms[-1].append(Fixed(_number(token, text)))
        else:
            terms[-1].append(_units(token, text))
    return terms, at


def _units(token: str, text: str) -> Units:
    """Return the units of a group with their marks."""
    found = _UNITS.fullmatch(token)
    if found is None:
        raise SpecError(
            f"The pattern {text!r} has {token!r}; expected the name of a group, with ± before or * after it."
        )
    sign, bracket, group, star = found.groups()
    return Units(group, inner=bool(bracket), signed=bool(sign), dual=bool(star))


def _number(token: str, text: str) -> int:
    """Return a number of units."""
    if len(token) > len(str(MAX_UNITS)) or int(token) > MAX_UNITS:
        raise SpecError(f"The pattern {text!r} has more units than a tensor can have.")
    return int(token)


def blocks(tensor: Tensor, axes: tuple[Pattern, ...], groups: Mapping[str, int]) -> Iterator[Block]:
    """Yield the parts of a tensor in which every dimension is one group or fixed.

    The views share the tensor's storage: writing to them writes to the tensor. Together they cover every element
    exactly once.
    """
    for dim, axis in enumerate(axes):
        if isinstance(axis, Product):
            sizes = [size_of(factor, groups) for factor in axis.factors]
            view = tensor.unflatten(dim, sizes)
            yield from blocks(view, (*axes[:dim], *axis.factors, *axes[dim + 1 :]), groups)
            return
        if isinstance(axis, Concat):
            start = 0
            for term in axis.terms:
                size = size_of(term, groups)
                view = tensor.narrow(dim, start, size)
                yield from blocks(view, (*axes[:dim], term, *axes[dim + 1 :]), groups)
                start += size
            return
    yield Block(tensor, tuple(axis for axis in axes if isinstance(axis, Fixed | Units)))


@dataclass(frozen=True)
class Block:
    """A view of a tensor in which every dimension is one group (``Units``) or fixed."""

    view: Tensor
    dims: tuple[Fixed | Units, ...]
