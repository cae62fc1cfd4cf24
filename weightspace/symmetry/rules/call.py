"""Operator calls as seen by rules, and results shared by many operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, Choice, fixed, freeze, resolve, unite

#: A traced tensor: one axis per dimension. Operators with several results return a list of these tuples.
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Parts:
    """A tensor that combines several: along one axis, the ``marker``, each unit has its own axes.

    Examples are fused queries, keys and values, and the last states of several recurrent layers. As long as operators
    treat the parts alike and end in selecting them, they are tracked one by one (see ``rules.fused``); any other
    operator sees them together, which makes one permutation act on all.
    """

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
        """Unite the parts, for an operator that can't distinguish them."""
        first, *others = self.alternatives
        for other in others:
            for a, b in zip(first, other, strict=True):
                unite(a, b)
        return first


class Uniform(tuple[Axis, ...]):
    """The axes of a tensor whose entries are all equal (usually zeros): each of its rows may have different units."""

    __slots__ = ()


class Indices(tuple[Axis, ...]):
    """The axes of an integer tensor whose values index the units of another axis, which isn't among them.

    ``topk`` and ``arange`` return such tensors. They are unaffected by a permutation of the units, as long as they are
    only used to look up units of that axis.
    """

    choice: Choice

    def __new__(cls, axes: Iterable[Axis], units: Axis, choice: Choice | None = None) -> Indices:
        """Return indices of ``units`` in a tensor with these axes; equal choices mean equal values."""
        self = super().__new__(cls, axes)
        self.choice = choice or Choice(units, sum(axis.size > 1 for axis in self))
        return self

    @property
    def units(self) -> Axis:
        """The axis whose units the values index."""
        return self.choice.units


@dataclass
class Call:
    """One operator call: ``args`` by schema name, ``shape`` of the result, and the axes it mixes (see ``mix``).

    A rule that reads an argument by ``call[name]`` sees parts united; ``args`` has them separate.
    """

    name: str
    args: Mapping[str, Any]
    shape: tuple[int, ...] | list[tuple[int, ...]]
    mixed: list[tuple[Axes, Axes]] = field(default_factory=list)
    #: Whether rows of an unmodified parameter are looked up.
    is_table: bool = False
    #: Whether the arguments depend on parameters.
    is_learnt: bool = False

    def __getitem__(self, name: str) -> Any:
        return _together(self.args[name])

    def get(self, *names: str) -> Any:
        """Return the first of several schema names that this operator has, or None."""
        return next((self[name] for name in names if name in self.args), None)

    def tensors(self) -> list[Axes]:
        """Return the tensors among the arguments, including those in lists."""
        listed = [value if isinstance(value, list) else [value] for value in map(_together, self.args.values())]
        return [item for values in listed for item in values if is_axes(item)]

    def axes(self) -> Iterator[Axis]:
        """Yield every axis of the arguments, including those of parts and those indexed by index tensors."""
        for value in self.args.values():
            for item in value if isinstance(value, list) else [value]:
                alternatives = item.alternatives if isinstance(item, Parts) else [item] if is_axes(item) else []
                yield from (axis for axes in alternatives for axis in axes)
        yield from (indices.units for indices in self.indices())

    def indices(self) -> Iterator[Indices]:
        """Yield the arguments whose values index units."""
        yield from (indices for _, indices in self.named_indices())

    def named_indices(self) -> Iterator[tuple[str, Indices]]:
        """Yield the arguments whose values index units with their names, including those in lists."""
        for name, value in self.args.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Indices):
                    yield name, item

    def mix(self, reduced: Sequence[Axis], kept: Sequence[Axis]) -> None:
        """Record that units along ``reduced`` were combined for each unit of ``kept``."""
        self.mixed.append((tuple(reduced), tuple(kept)))


Rule = Callable[[Call], Any]


def is_axes(value: object) -> bool:
    """Return whether an argument is a traced tensor."""
    return isinstance(value, tuple) and all(hasattr(axis, "size") for axis in value)


def _together(value: Any) -> Any:
    if isinstance(value, list):
        return [_together(item) for item in value]
    return value.together() if isinstance(value, Parts) else value


def broadcast(values: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """Unite the axes of tensors that are broadcast against each other, and return those of the result."""
    result: list[Axis] = []
    for place, size in enumerate(shape):
        here = [v[place - len(shape)] for v in values if len(v) >= len(shape) - place]
        here = [axis for axis in here if axis.size == size]
        result.append(shared(here) if here else Atom(size))
    return tuple(result)


def shared(axes: Sequence[Axis]) -> Axis:
    """Unite axes of one size, and return the one that records the choice by which its positions were looked up."""
    for other in axes[1:]:
        unite(axes[0], other)
    choices = {axis.choice for axis in map(resolve, axes) if isinstance(axis, Atom) and axis.choice}
    if not choices:
        return axes[0]
    chosen = (axis for axis in map(resolve, axes) if isinstance(axis, Atom) and axis.choice)
    return next(chosen) if len(choices) == 1 else fixed(axes[0].size)


def pointwise(call: Call) -> Axes:
    """Map each unit to the same unit of the result."""
    return broadcast(call.tensors(), one_shape(call))


def identity(call: Call) -> Any:
    """Return the first argument's axes."""
    return results(call, call.tensors()[0])


def create(call: Call) -> Axes:
    """Return a tensor with equal entries, which any permutation leaves unchanged."""
    return Uniform(Atom(size) for size in one_shape(call))


def freeze_all(call: Call) -> Any:
    """Freeze every tensor that the call touches; the fallback for operators without a rule."""
    for axis in call.axes():
        freeze(axis)
    return fixed_like(call.shape)


def fixed_like(shape: tuple[int, ...] | list[tuple[int, ...]], cause: str = "") -> Any:
    """Return fixed axes for one shape, or for each of several."""
    if isinstance(shape, list):
        return [fixed_like(item, cause) for item in shape]
    return tuple(fixed(size, cause) for size in shape)


def one_shape(call: Call) -> tuple[int, ...]:
    """Return the shape of the only or first result."""
    return call.shape[0] if isinstance(call.shape, list) else call.shape


def results(call: Call, first: Axes) -> Any:
    """Return ``first``, with fixed companions if the operator has several results."""
    if isinstance(call.shape, list):
        return [first, *(fixed_like(shape) for shape in call.shape[1:])]
    return first


def dims_of(dims: Any, rank: int) -> list[int]:
    """Return the dimensions of an operator as a list, from none (all), one or a list of them."""
    listed = range(rank) if dims is None or dims == [] else dims if isinstance(dims, list) else [dims]
    return sorted(dim % rank for dim in listed) if rank else []
