"""Gain matrices of weight matching: a group, its nested groups, and every part of a tensor that they permute.

For blocks ``A`` (target) and ``B`` (source), the inner product ``⟨A, π(B)⟩`` is linear in each permutation with the
others held, so a group's best permutation is the solution of an assignment problem on one gain matrix. The matrix is
updated from step to step: when a neighbour moves ``k`` of its ``n`` units, only their contribution is recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.symmetry import PermutationSpec
from weightspace.symmetry.pattern import Block, Units, blocks
from weightspace.symmetry.permutation import outer_place, permute_block

Indices = Mapping[str, Tensor]

#: Gains of the inner units of two outer units, by the number of the target's and of the source's outer unit.
PairGains: TypeAlias = "Callable[[int, int], Tensor]"

#: Largest number of gains between all inner units that is kept in memory (1 GiB): those of large mixtures of experts
#: would take more than their weights, and are computed for one pair of experts at a time.
_KEPT = 2**28


@dataclass(eq=False)
class Pair:
    """A block of the target paired with that of the source; every dimension is one group or fixed."""

    target: Tensor
    source: Block
    #: Group of each dimension, None if it is fixed.
    groups: tuple[str | None, ...]
    #: Permutations and value of the last inner product.
    _known: tuple[tuple[Tensor | None, ...], float] | None = None

    def inner_product(self, indices: Indices, outer: Mapping[str, str]) -> float:
        """Return ⟨A, π(B)⟩; sums over rows are accumulated in float64."""
        asked = tuple(indices.get(group) for group in self.groups if group)
        if self._known is None or any(one is not other for one, other in zip(asked, self._known[0], strict=True)):
            products = self.target * permute_block(self.source, indices, outer)
            self._known = asked, float(products.reshape(len(products), -1).sum(1).double().sum())
        return self._known[1]


def pair_blocks(spec: PermutationSpec, target: StateDict, source: StateDict) -> list[Pair]:
    """Return every block of a parameter that is permuted by some group; tied tensors count once."""
    result, seen = [], set()
    for name, axes in spec.axes.items():
        tensor = target[name]
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if name in spec.statistics or tensor.numel() == 0 or key in seen or not tensor.is_floating_point():
            continue
        seen.add(key)
        both = (blocks(precise(state[name]), axes, spec.groups) for state in (target, source))
        for a, b in zip(*both, strict=True):
            groups = tuple(dim.group if isinstance(dim, Units) else None for dim in a.dims)
            if any(groups):
                result.append(Pair(a.view, b, groups))
    return result


def precise(tensor: Tensor) -> Tensor:
    """Return float32 (float64 unchanged) in main memory, where assignments are solved."""
    return tensor.detach().to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)


class Place(NamedTuple):
    """Units of a group, or of it and one inner group, and the dimensions of a block that hold them."""

    rows: tuple[str, ...]
    dims: tuple[int, ...]


@dataclass(eq=False)
class Family:
    """A group, its inner groups, and its blocks; the products of its gains are computed on ``device``."""

    group: str
    inner: tuple[str, ...]
    spec: PermutationSpec
    pairs: list[Pair] = field(default_factory=list)
    device: str = "cpu"
    _gains: dict[tuple[str, ...], _Gains] = field(default_factory=dict)

    def members(self) -> tuple[str, ...]:
        """Return the group and its inner groups."""
        return (self.group, *self.inner)

    def neighbours(self) -> set[str]:
        """Return the other groups whose permutation affects this family's gains."""
        return {group for pair in self.pairs for group in pair.groups if group} - set(self.members())

    def is_linear(self) -> bool:
        """Return whether one assignment on the gains is the optimal step (no group is twice in a block)."""
        return all(self.coupling(pair) <= 1 for pair in self.pairs)

    def coupling(self, pair: Pair) -> int:
        """Return how often the group (without inner groups), or its inner groups, occur in a block."""
        counted = self.inner or (self.group,)
        often = sum(group in counted for group in pair.groups)
        return max(often, sum(group == self.group for group in pair.groups))

    def objective(self, indices: Indices) -> float:
        """Return the family's contribution to Σ⟨A, π(B)⟩."""
        return sum(pair.inner_product(indices, self.spec.outer) for pair in self.pairs)

    def gains(self, rows: tuple[str, ...], indices: Indices) -> Tensor:
        """Return the gain of assigning every source unit to every target unit, with the other groups held.

        Args:
            rows: the groups whose units are matched: the group alone, or it and one inner group.
            indices: current permutations; blocks with a group that isn't among them are skipped.

        Returns:
            float32 (float64 for float64 weights) of shape ``(n, n)``; ``(outer, inner, outer, inner)`` for two.
        """
        if rows not in self._gains:
            self._gains[rows] = _Gains(rows, self._terms(rows), self.spec, self.device)
        return self._gains[rows].at(indices)

    def pair_gains(self, inner: str, indices: Indices) -> PairGains:
        """Return the gains of an inner group, ``(n, n)`` for each pair of outer units, with the other groups held."""
        rows = (self.group, inner)
        size, units = self.spec.groups[self.group], self.spec.groups[inner]
        if (size * units) ** 2 <= _KEPT:
            gains = self.gains(rows, indices)
            return lambda i, j: gains[i, :, j]
        sides = [
            tuple(unfold(block, term.places).view(size, units, -1) for block in term.blocks(indices, self.spec))
            for term in self._terms(rows)
            if term.held() <= indices.keys()
        ]
        return lambda i, j: torch.stack([torch.zeros(units, units), *(a[i] @ b[j].T for a, b in sides)]).sum(0)

    def inner_gains(self, inner: str, indices: Indices) -> Tensor:
        """Return the gains of one inner group within each unit of its outer group, with everything else held.

        Returns:
            Shape ``(outer units, n, n)``.
        """
        total: Tensor | None = None
        outer = self.spec.outer
        for pair in self.pairs:
            for place in (place for place, group in enumerate(pair.groups) if group == inner):
                dims = tuple(dim if other != place else None for other, dim in enumerate(pair.source.dims))
                moved = permute_block(Block(pair.source.view, dims), indices, outer)  # type: ignore[arg-type]
                above = outer_place(list(pair.groups), place, self.group)
                rest = [dim for dim in range(moved.ndim) if dim not in (above, place)]
                a, b = (
                    one.permute(above, place, *rest).flatten(2) if rest else one.permute(above, place)[..., None]
                    for one in (pair.target, moved)
                )
                part = a @ b.mT
                total = part if total is None else total + part
        assert total is not None, "an inner group occurs in some block"
        return total

    def places(self, pair: Pair) -> list[Place]:
        """Return the dimensions of a block that hold a family's units; none if it has several inner groups."""
        own = [place for place, group in enumerate(pair.groups) if group in self.members()]
        if not self.inner:  # a group is twice in a block: one place moves with the other held
            return [Place((self.group,), (place,)) for place in own]
        own.sort(key=lambda place: pair.groups[place] != self.group)
        rows = tuple(str(pair.groups[place]) for place in own)
        return [Place(rows, tuple(own))] if len(rows) <= 2 and rows.count(self.group) == 1 else []

    def _terms(self, rows: tuple[str, ...]) -> list[_Term]:
        return [_Term(pair, place.dims) for pair in self.pairs for place in self.places(pair) if place.rows == rows]


@dataclass(eq=False)
class _Term:
    """A block seen from the places of a family's groups, and the permutations of its last evaluation."""

    pair: Pair
    places: tuple[int, ...]
    seen: dict[str, Tensor] | None = None

    def held(self) -> set[str]:
        """Return the groups of the other dimensions."""
        return {group for place, group in enumerate(self.pair.groups) if group and place not in self.places}

    def blocks(self, indices: Indices, spec: PermutationSpec) -> tuple[Tensor, Tensor]:
        """Return the target, and the source with its other groups permuted."""
        dims = tuple(dim if place not in self.places else None for place, dim in enumerate(self.pair.source.dims))
        moved = permute_block(Block(self.pair.source.view, dims), indices, spec.outer)  # type: ignore[arg-type]
        return self.pair.target, moved


class _Gains:
    """A gain matrix that tracks the permutations of the neighbours; it is summed on a device, and read on the CPU."""

    def __init__(self, rows: tuple[str, ...], terms: list[_Term], spec: PermutationSpec, device: str) -> None:
        self.terms, self.device = terms, device
        self.outer = spec.outer
        self.shape = tuple(spec.groups[group] for group in rows) * 2
        self.total: Tensor | None = None

    def at(self, indices: Indices) -> Tensor:
        for term in (term for term in self.terms if term.held() <= indices.keys()):
            for a, b in self._news(term, indices):
                rows, columns = (unfold(one, term.places).to(self.device) for one in (a, b))
                columns = columns.T
                self.total = rows @ columns if self.total is None else self.total.addmm_(rows, columns)
        return torch.zeros(self.shape) if self.total is None else self.total.view(self.shape).cpu()

    def _news(self, term: _Term, indices: Indices) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the changes in a block since its last evaluation: target, and new minus old source."""
        pair, held = term.pair, term.held()
        now = {group: indices[group] for group in held}
        before, term.seen = term.seen, now
        dims = tuple(dim if place not in term.places else None for place, dim in enumerate(pair.source.dims))
        block = Block(pair.source.view, dims)  # type: ignore[arg-type]
        if before is None:
            yield pair.target, permute_block(block, now, self.outer)
        elif len(held) == 1 and (group := next(iter(held))) not in self.outer:
            place = next(p for p, g in enumerate(pair.groups) if g == group and p not in term.places)
            new, old = now[group], before[group]
            moved = (new != old).nonzero().flatten()
            if len(moved):
                source = pair.source.view
                change = source.index_select(place, new[moved]) - source.index_select(place, old[moved])
                yield pair.target.index_select(place, moved), change
        elif any(not torch.equal(now[group], before[group]) for group in held):
            yield (
                pair.target,
                permute_block(block, now, self.outer) - permute_block(block, before, self.outer),
            )


def contract(a: Tensor, b: Tensor, places: tuple[int, ...]) -> Tensor:
    """Return the products of all pairs of units of two blocks, summed over the other dimensions."""
    return unfold(a, places) @ unfold(b, places).T


def unfold(block: Tensor, places: tuple[int, ...]) -> Tensor:
    """Return a matrix with one row per unit at the given dimensions of a block."""
    rest = [dim for dim in range(block.ndim) if dim not in places]
    return block.permute(*places, *rest).reshape(math.prod(block.shape[place] for place in places), -1)


def families(spec: PermutationSpec, pairs: list[Pair], device: str = "cpu") -> list[Family]:
    """Return one family for every outermost group, in the order of the spec."""
    result = {
        group: Family(group, tuple(i for i, o in spec.outer.items() if o == group), spec, device=device)
        for group in spec.groups
        if group not in spec.outer
    }
    for pair in pairs:
        touched = {spec.outer.get(group, group) for group in pair.groups if group}
        for group in sorted(touched):
            result[group].pairs.append(pair)
    return list(result.values())
