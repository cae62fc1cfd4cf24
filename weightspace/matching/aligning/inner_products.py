"""Inner products of the units of two networks for a group and the groups inside it, and its best maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from weightspace.matching.aligning.best_maps import Best, as_matrices, best_gains, best_maps
from weightspace.symmetry.kinds.action import SIGN, Maps, act
from weightspace.symmetry.kinds.canonical_weights import is_floating
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.pattern import Block, Fixed, Units, blocks

#: Maximum number of rounds in which groups that are inside the same group and share a tensor are matched in turn.
_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Pair:
    """A block of the target with that of the source; every dimension is one group or fixed.

    Attributes:
        spec: of the architecture.
        tensor: name of the tensor that it is a part of.
        number: index of the block in the tensor.
        dims: its dimensions.
        weights: of the target and the source, possibly computed on access.
    """

    spec: SymmetrySpec
    tensor: str
    number: int
    dims: tuple[Fixed | Units, ...]
    weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]

    @property
    def groups(self) -> tuple[str | None, ...]:
        """The group of each dimension, None for a fixed one."""
        return tuple(dim.group if isinstance(dim, Units) else None for dim in self.dims)

    @property
    def target(self) -> Tensor:
        """The block of the target."""
        return self._block(self.weights[0]).view

    @property
    def source(self) -> Block:
        """The block of the source, with its dimensions."""
        return self._block(self.weights[1])

    def _block(self, weights: Mapping[str, Tensor]) -> Block:
        every = blocks(weights[self.tensor], self.spec.axes[self.tensor], self.spec.groups)
        return next(islice(every, self.number, None))


def inner_product(spec: SymmetrySpec, pairs: Iterable[Pair], maps: Maps) -> float:
    """Return ``⟨A, g·B⟩`` over some blocks."""
    return sum(_inner_product(spec, pair, maps) for pair in pairs)


def _inner_product(spec: SymmetrySpec, pair: Pair, maps: Maps) -> float:
    return float((pair.target * act(spec, maps, pair.source)).sum())


class InnerProducts:
    """Inner products of blocks, cached as long as the maps of their groups are the same tensors."""

    def __init__(self) -> None:
        #: Block -> the last two tuples of maps, each with its inner product.
        self._known: dict[Pair, list[tuple[tuple[Tensor | None, ...], float]]] = {}

    def total(self, pairs: Iterable[Pair], maps: Maps) -> float:
        """Return ``⟨A, g·B⟩`` over some blocks."""
        return sum(self._of(pair, maps) for pair in pairs)

    def _of(self, pair: Pair, maps: Maps) -> float:
        own = tuple(maps.get(name) for group in pair.groups if group for name in (group, SIGN + group))
        for held, value in self._known.get(pair, []):
            if all(one is other for one, other in zip(own, held, strict=True)):
                return value
        value = _inner_product(pair.spec, pair, maps)
        self._known[pair] = [*self._known.get(pair, [])[-1:], (own, value)]
        return value


@dataclass(frozen=True, eq=False)
class Family:
    """A group, the groups inside it, and the blocks in which their units are.

    Attributes:
        spec: of the architecture.
        group: its name.
        inner: the groups inside it.
        pairs: the blocks.
    """

    spec: SymmetrySpec
    group: str
    inner: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """The group and those inside it."""
        return (self.group, *self.inner)

    def is_seen(self, maps: Maps) -> bool:
        """Return whether some block has the group beside groups that have maps."""
        return bool(self.known({**maps, **dict.fromkeys(self.members, torch.empty(0))}))

    def known(self, maps: Maps) -> list[Pair]:
        """Return the blocks in which all groups have maps."""
        return [pair for pair in self.pairs if all(group in maps for group in pair.groups if group)]

    def best(self, maps: Maps) -> dict[str, Tensor]:
        """Return the best maps of the group and of those inside it, with all others held.

        Args:
            maps: of other groups; blocks with a group that has none are left out.
        """
        if not self.inner:
            return self._best_alone(self._products(maps))
        inside, gains = self.best_inside(maps)
        order = best_maps("permutation", gains).maps
        return {self.group: order, **chosen_inside(inside, order)}

    def _best_alone(self, products: Mapping[tuple[str, ...], Tensor]) -> dict[str, Tensor]:
        """Return the best map of a group without inner groups, and its signs."""
        kind, fixes_ones = self.spec.kinds[self.group], self.group in self.spec.fixes_ones
        signed = products.get((SIGN,))
        if signed is None:
            return {self.group: best_maps(kind, products[()], fixes_ones=fixes_ones).maps}
        order = best_maps("permutation", signed.abs() + products.get((), 0)).maps
        signs = torch.where(signed.gather(1, order[:, None]).flatten() < 0, -1, 1)
        return {self.group: order, SIGN + self.group: signs.to(torch.int8)}

    def best_inside(self, maps: Maps) -> tuple[dict[str, Tensor], Tensor]:
        """Return the best maps of the inner groups for every pair of units of the outer group.

        Args:
            maps: of other groups; blocks with a group that has none are left out.

        Returns:
            Inner group -> maps with two leading axes, the units of the target and those of the source; and the inner
            products ``(n, n)`` of each pair with these maps.
        """
        products = self._products(maps)
        found, gains = _best_inside(self.spec, {inner: one for inner, one in products.items() if inner})
        return found, gains + products.get((), 0)

    def _products(self, maps: Maps) -> dict[tuple[str, ...], Tensor]:
        """Return the inner products of all units of the group, and of those inside it.

        Returns:
            Inner groups of a block -> shape ``(n, n, …)``, followed by the sizes of the inner groups, in the target and
            then in the source; ``±`` -> those of a signed group where its signs matter.
        """
        total: dict[tuple[str, ...], Tensor] = {}
        others = {group: one for group, one in maps.items() if group not in self.members}
        known = self.known({**others, **dict.fromkeys(self.members, torch.empty(0))})
        for pair in known:
            for places in self._places(pair, maps):
                held = others if len(places) > 1 or self.inner else maps
                inner, products = self._pair_products(pair, places, held)
                total[inner] = total[inner] + products if inner in total else products
        return total

    def _places(self, pair: Pair, maps: Maps) -> list[tuple[int, ...]]:
        """Return the dimensions of a block that hold units of the family; one at a time if the group is there twice."""
        own = [place for place, group in enumerate(pair.groups) if group in self.members]
        if self.inner:
            return [tuple(sorted(own, key=lambda place: pair.groups[place] != self.group))]
        return [(place,) for place in own if len(own) == 1 or self.group in maps]

    def _pair_products(self, pair: Pair, places: tuple[int, ...], maps: Maps) -> tuple[tuple[str, ...], Tensor]:
        dims = tuple(None if place in places else dim for place, dim in enumerate(pair.dims))
        moved = act(self.spec, maps, Block(pair.source.view, dims))  # type: ignore[arg-type]
        order = [*places, *(place for place in range(moved.ndim) if place not in places)]
        sizes = [moved.shape[place] for place in places]
        a, b = (one.permute(order).reshape(math.prod(sizes), -1) for one in (pair.target, moved))
        inner = tuple(str(pair.groups[place]) for place in places[1:])
        if not self.inner and getattr(pair.dims[places[0]], "signed", False):
            inner = (SIGN,)
        products = (a @ b.T).view(*sizes, *sizes)
        return inner, products.movedim(len(sizes), 1)


def chosen_inside(inside: Maps, order: Tensor) -> dict[str, Tensor]:
    """Return the maps of inner groups for an order of the outer one, from those of all its pairs of units."""
    return {name: maps[torch.arange(len(order)), order] for name, maps in inside.items()}


def _best_inside(spec: SymmetrySpec, products: Mapping[tuple[str, ...], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the best maps inside every pair of units of the outer group, and their inner products.

    Groups that share a tensor (a group of queries and the dimensions of each) are matched in turn, after a start in
    which the one is matched as if the other had a separate map for each of its units.
    """
    alone = {inner[0]: one for inner, one in products.items() if len(inner) == 1}
    shared = {(inner[0], inner[1]): one for inner, one in products.items() if len(inner) == 2}
    names = sorted({name for inner in products for name in inner}, key=lambda name: spec.kinds[name] != "permutation")
    best: dict[str, Best] = {}
    for _ in range(_ROUNDS):
        before = dict(best)
        for name in names:
            seen = [_seen(spec, pair, one, name, best) for pair, one in shared.items() if name in pair]
            total = torch.stack([*seen, *([alone[name]] if name in alone else [])]).sum(0)
            best[name] = best_maps(spec.kinds[name], total)
        if not shared or (before and all(torch.equal(best[name].maps, before[name].maps) for name in names)):
            break
    gains = [_gain(spec, name, one, best) for name, one in alone.items()]
    for pair, one in shared.items():
        gains.append(_gain(spec, pair[0], _seen(spec, pair, one, pair[0], best), best))
    return {name: found.maps for name, found in best.items()}, torch.stack(gains).sum(0)


def _gain(spec: SymmetrySpec, name: str, products: Tensor, best: Mapping[str, Best]) -> Tensor:
    return (products * as_matrices(spec.kinds[name], best[name].maps)).sum((-2, -1))


def _seen(spec: SymmetrySpec, pair: tuple[str, str], products: Tensor, name: str, best: Mapping[str, Best]) -> Tensor:
    """Return the inner products of one of two groups, with the other one mapped as found, or free for each unit."""
    other = pair[1] if name == pair[0] else pair[0]
    if other in best:
        letters = "...iajb,...ij->...ab" if name == pair[1] else "...iajb,...ab->...ij"
        return torch.einsum(letters, products, as_matrices(spec.kinds[other], best[other].maps))
    dims = (-3, -1) if name == pair[0] else (-4, -2)
    return best_gains(spec.kinds[other], products.movedim(dims, (-2, -1)))


def all_pairs(listed: Iterable[Family]) -> list[Pair]:
    """Return the blocks of some families, each once."""
    return list(dict.fromkeys(pair for family in listed for pair in family.pairs))


def families(spec: SymmetrySpec, target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> list[Family]:
    """Return the families of two canonical networks; running statistics don't count.

    Args:
        spec: of the architecture.
        target: canonical weights, possibly computed on access.
        source: canonical weights, likewise.
    """
    pairs = []
    for name, axes in spec.axes.items():
        if name in spec.statistics or not is_floating(source, name):
            continue
        shaped = torch.empty(spec.shape(name), device="meta")
        for number, block in enumerate(blocks(shaped, axes, spec.groups)):
            if any(isinstance(dim, Units) for dim in block.dims):
                pairs.append(Pair(spec, name, number, block.dims, (target, source)))
    outermost = {group: spec.outer.get(group, group) for group in spec.groups}
    return [
        Family(
            spec,
            group,
            tuple(inner for inner, outer in spec.outer.items() if outer == group),
            tuple(pair for pair in pairs if any(outermost[one] == group for one in pair.groups if one)),
        )
        for group in spec.groups
        if group not in spec.outer
    ]
