"""Canonical weights computed on access, so that only a few are held in float64 at a time.

Tensors that are connected by folds and balanced groups are computed together (in a transformer, those of an attention
layer or an MLP with the norm before it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.symmetry.kinds.action import Maps, act_in_place
from weightspace.symmetry.kinds.balance import balance_group, balanced_groups
from weightspace.symmetry.kinds.fold import check_folded, fold_norm
from weightspace.symmetry.kinds.symmetry_spec import Fold, SymmetrySpec
from weightspace.symmetry.pattern import units_in


@dataclass(frozen=True)
class Part:
    """Tensors that are made canonical together.

    Attributes:
        names: of the tensors, in the order of the spec.
        folds: the norms among them that are folded.
        groups: the groups among their units that are balanced.
    """

    names: tuple[str, ...]
    folds: tuple[Fold, ...]
    groups: tuple[str, ...]


class CanonicalWeights(Mapping[str, Tensor]):
    """Canonical weights of a checkpoint, in float64.

    Args:
        spec: of the architecture.
        given: returns a tensor of the checkpoint by its name.
        keep: maximum number of bytes of computed weights to keep; of the others, the last two parts are held.
        balance: whether to balance groups, or only to fold norms.
        moves: maps that are applied to the weights afterwards.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        given: Callable[[str], Tensor],
        *,
        keep: int = 0,
        balance: bool = True,
        moves: Maps | None = None,
    ) -> None:
        self.spec, self.given, self.moves, self.balance = spec, given, moves or {}, balance
        self.left = keep
        self.parts = {name: part for part in parts_of(spec) for name in part.names}
        self.kept: StateDict = {}
        self.last: list[StateDict] = []

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor; not to be modified.

        Raises:
            SpecError: a norm cannot be folded because its gain is zero where its shift has to be divided by it.
        """
        for held in (self.kept, *self.last):
            if name in held:
                return held[name]
        self.last = self.last[-1:]
        computed = self._computed(self.parts[name])
        size = sum(tensor.nbytes for tensor in computed.values())
        if size <= self.left:
            self.left -= size
            self.kept |= computed
        else:
            self.last.append(computed)
        return computed[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, those of a part together."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.parts)

    def is_floating(self, name: str) -> bool:
        """Return whether a tensor is floating-point, without computing it."""
        return self.given(name).is_floating_point()

    def _computed(self, part: Part) -> StateDict:
        state = {name: _copied(self.given(name)) for name in part.names}
        for fold in part.folds:
            fold_norm(fold, state)
        check_folded(part.folds, state)
        if self.balance:
            for group in part.groups:
                balance_group(self.spec, group, state)
        if self.moves:
            for name, tensor in state.items():
                act_in_place(self.spec, self.moves, name, tensor)
        return state


def is_floating(weights: Mapping[str, Tensor], name: str) -> bool:
    """Return whether a tensor of any such mapping is floating-point, without computing it."""
    return weights.is_floating(name) if isinstance(weights, CanonicalWeights) else weights[name].is_floating_point()


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor, in float64 if it is floating-point."""
    return tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)


def parts_of(spec: SymmetrySpec) -> list[Part]:
    """Return the parts of a checkpoint that are made canonical separately."""
    names_of: dict[str, list[str]] = {group: [] for group in balanced_groups(spec)}
    for name, axes in spec.axes.items():
        for group in {units.group for axis in axes for units in units_in(axis)} & names_of.keys():
            names_of[group].append(name)
    joined = [*names_of.values(), *(list(_names(fold)) for fold in spec.folds)]
    lowest = {name: name for name in spec.axes}

    def root(name: str) -> str:
        while lowest[name] != name:
            name = lowest[name]
        return name

    for names in joined:
        for name in names[1:]:
            lowest[root(name)] = root(names[0])
    members: dict[str, list[str]] = {}
    folds: dict[str, list[Fold]] = {}
    groups: dict[str, list[str]] = {}
    for name in spec.axes:
        members.setdefault(root(name), []).append(name)
    for fold in spec.folds:
        folds.setdefault(root(next(_names(fold))), []).append(fold)
    for group, names in names_of.items():
        groups.setdefault(root(names[0]), []).append(group)
    return [Part(tuple(names), tuple(folds.get(key, ())), tuple(groups.get(key, ()))) for key, names in members.items()]


def _names(fold: Fold) -> Iterator[str]:
    """Yield the names of the tensors that take part in a fold."""
    yield from (name for name in (fold.gain, fold.shift) if name is not None)
    for reader in fold.readers:
        yield reader.weight
        if reader.bias is not None:
            yield reader.bias
