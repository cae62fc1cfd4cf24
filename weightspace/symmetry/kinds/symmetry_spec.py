"""Symmetry specs: which axes of which tensors are moved by one map, of which kind, after which folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from weightspace.symmetry.pattern import Pattern, size_of
from weightspace.symmetry.spec import Verification

#: What moves the units of a group: an order, a rotation or reflection, or an angle for each pair of rotary dimensions.
Kind: TypeAlias = Literal["permutation", "orthogonal", "phases"]


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads a norm.

    Attributes:
        weight: name of its weight.
        axis: the axis of the weight that is read along.
        bias: name of its bias, or None.
    """

    weight: str
    axis: int
    bias: str | None


@dataclass(frozen=True)
class Fold:
    """A norm whose gain moves into the layers that read it, and whose shift moves into their biases.

    Attributes:
        gain: name of the gain, or None.
        shift: name of the shift, or None.
        readers: the layers.
    """

    gain: str | None
    shift: str | None
    readers: tuple[Reader, ...]

    @property
    def keeps_shift(self) -> bool:
        """Whether the shift stays, divided by the gain: a reader has no bias that could take it."""
        return self.shift is not None and any(reader.bias is None for reader in self.readers)


@dataclass(frozen=True)
class SymmetrySpec:
    """The symmetries of an architecture once its norms are folded.

    Attributes:
        groups: name -> number of units; for an inner group, the number per unit of its outer group.
        kinds: name -> kind, of every group.
        fixes_ones: orthogonal groups whose maps keep the vector of ones.
        axes: tensor -> one pattern per axis.
        outer: inner group -> outer group.
        folds: the norms to fold.
        statistics: tensors that are ignored in matching.
        frozen: lost symmetries with their reasons.
        verification: the check that it passed, or None.
    """

    groups: Mapping[str, int]
    kinds: Mapping[str, Kind]
    axes: Mapping[str, tuple[Pattern, ...]]
    outer: Mapping[str, str] = field(default_factory=dict)
    fixes_ones: frozenset[str] = frozenset()
    folds: tuple[Fold, ...] = ()
    statistics: frozenset[str] = frozenset()
    frozen: tuple[str, ...] = ()
    verification: Verification | None = None

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the expected shape of a tensor."""
        return tuple(size_of(axis, self.groups) for axis in self.axes[tensor])
