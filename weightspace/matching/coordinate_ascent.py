"""Coordinate ascent: sweeps over all families of groups, finding each one's best permutation with the others held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import torch
from torch import Generator, Tensor

from weightspace.matching.assignment import assign
from weightspace.matching.gains import Family, Indices, Pair, PairGains, families
from weightspace.progress import Progress
from weightspace.symmetry import PermutationSpec
from weightspace.symmetry.pattern import Block
from weightspace.symmetry.permutation import permute_block


@dataclass(frozen=True)
class AscentResult:
    """The result of an ascent: permutations, the objective after every sweep, and whether it converged."""

    indices: dict[str, Tensor]
    history: tuple[float, ...]
    converged: bool


class CoordinateAscent:
    """Coordinate ascent over the same pairs of blocks, from any start.

    Args:
        spec: the architecture's spec.
        pairs: blocks of the target paired with those of the source.
        workers: solve families that share no block in parallel.
        max_sweeps: maximum passes over all groups in one ascent.
        device: where the products of the gains are computed.
        on_progress: called after every ``"sweep"``, with the objective and the number of families ``moved``.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        pairs: list[Pair],
        workers: Workers,
        *,
        max_sweeps: int,
        device: str = "cpu",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.spec, self.pairs, self.workers = spec, pairs, workers
        self.families = families(spec, pairs, device)
        self.max_sweeps, self.on_progress = max_sweeps, on_progress

    def objective(self, indices: Indices) -> float:
        """Return Σ⟨A, π(B)⟩ over the pairs."""
        return math.fsum(pair.inner_product(indices, self.spec.outer) for pair in self.pairs)

    def ascend(self, start: Indices, generator: Generator) -> AscentResult:
        """Ascend from a start, drawing the order of the groups for every sweep from the generator."""
        ascent = AscentState(self.families, dict(start))
        history: list[float] = []
        converged = False
        while len(history) < self.max_sweeps and not converged:
            order = torch.randperm(len(self.families), generator=generator).tolist()
            moved = ascent.sweep(order, self.workers)
            history.append(self.objective(ascent.indices) if moved or not history else history[-1])
            if self.on_progress is not None:
                self.on_progress(Progress("sweep", len(history), value=history[-1], details={"moved": moved}))
            converged = not moved
        return AscentResult(ascent.indices, tuple(history), converged)


class AscentState:
    """The state of coordinate ascent: permutations, and the families that may still improve."""

    def __init__(self, listed: list[Family], indices: dict[str, Tensor]) -> None:
        self.families = listed
        self.indices = indices
        home = {group: number for number, family in enumerate(listed) for group in family.members()}
        self.neighbours = [{home[group] for group in family.neighbours()} for family in listed]
        self.stale = [True] * len(listed)

    def sweep(self, order: list[int], workers: Workers) -> int:
        """Step every stale family once, equivalent to stepping in this order, and return how many moved."""
        moved = 0
        for wave in self._waves(order):
            stale = [number for number in wave if self.stale[number]]
            for number, change in zip(stale, workers.map(self._step, stale), strict=True):
                self.stale[number] = False
                if change is not None:
                    self.indices.update(change)
                    moved += 1
                    for other in self.neighbours[number]:
                        self.stale[other] = True
                    self.stale[number] = not self.families[number].is_linear()
        return moved

    def _waves(self, order: list[int]) -> list[list[int]]:
        """Split an order into runs of families that share no tensor; the result equals that of the plain order."""
        level: dict[int, int] = {}
        for number in order:
            level[number] = 1 + max((level[other] for other in self.neighbours[number] if other in level), default=-1)
        waves: list[list[int]] = [[] for _ in range(1 + max(level.values(), default=-1))]
        for number in order:
            waves[level[number]].append(number)
        return waves

    def _step(self, number: int) -> Indices | None:
        return step(self.families[number], self.indices)


class Workers:
    """Threads restricted to one core each, so that sums are identical for any number of threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.before = torch.get_num_threads()

    def __enter__(self) -> Workers:
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def map(self, function: Callable[[int], Indices | None], items: list[int]) -> Iterable[Indices | None]:
        """Return the results of a function for every item, in order."""
        if self.threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        return list(self.pool.map(function, items))

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.before)


#: A step is an improvement above this fraction of the family's contribution (float32 rounding is below it).
TOLERANCE = 1e-7


def step(family: Family, indices: Indices) -> Indices | None:
    """Return new permutations for a family's groups, or None if there is no improvement."""
    if not family.pairs:
        return None
    if not family.inner:
        return _plain(family, indices) if family.is_linear() else _quadratic(family, indices)
    first = _joint(family, indices)
    if family.is_linear():
        return first
    second = match_inside(family, family.inner, {**indices, **(first or {})})
    return {**(first or {}), **second} or None


def _plain(family: Family, indices: Indices) -> Indices | None:
    group = family.group
    gains = family.gains((group,), indices)
    best = assign(gains)
    if torch.equal(best, indices[group]):
        return None
    old, new = (gains.gather(1, index[:, None]).double() for index in (indices[group], best))
    improved = new.sum() - old.sum() > TOLERANCE * new.abs().sum()
    return {group: best} if improved else None


def _quadratic(family: Family, indices: Indices) -> Indices | None:
    """Step if the group is on both axes of a tensor, as in a recurrence.

    The gains are then the gradient of a quadratic objective, and the best assignment for the gradient may overshoot.
    Each further attempt rewards units more for staying. This eventually makes the objective convex (the reward's
    quadratic term is constant for permutations), so a step along the gradient can't lose; a reward of more than half of
    all that the units miss outweighs any move, so there are at most log₂ of twice their number attempts.

    Source:
        The concave-convex procedure, Yuille and Rangarajan 2003, https://doi.org/10.1162/08997660360581958.
    """
    now = indices[family.group]
    gains = family.gains((family.group,), indices)
    held = gains.gather(1, now[:, None])
    missed = float((gains.amax(1, keepdim=True) - held).mean())
    reward = 0.0
    while True:
        chosen = assign(gains.scatter(1, now[:, None], held + reward))
        if torch.equal(chosen, now):
            return None
        if change := _if_better(family, indices, {family.group: chosen}):
            return change
        if not missed:  # all equal: nothing to gain
            return None
        reward = 2 * reward or missed / 4


def _if_better(family: Family, indices: Indices, change: dict[str, Tensor]) -> Indices | None:
    """Return a change if it raises the family's true objective."""
    old, new = family.objective(indices), family.objective({**indices, **change})
    return change if new - old > TOLERANCE * max(abs(old), abs(new)) else None


def _joint(family: Family, indices: Indices) -> Indices | None:
    change = match(family, indices) if family.is_linear() else match_nested(family, indices)
    if all(torch.equal(index, indices[group]) for group, index in change.items()):
        return None
    return _if_better(family, indices, change)


def match(family: Family, indices: Indices) -> dict[str, Tensor]:
    """Return the best permutations of a family's groups, the others held."""
    total = family.gains((family.group,), indices)
    return match_by(family, total, lambda inner: family.pair_gains(inner, indices))


def match_by(family: Family, total: Tensor, inside: Callable[[str], PairGains]) -> dict[str, Tensor]:
    """Return the permutations of a family's groups with the largest gain.

    The units of the outer group are matched by the best gain of their inner units, then the inner units are matched.

    Args:
        family: a group and its inner groups.
        total: the gains of the group alone, ``(n, n)``.
        inside: returns the gains of an inner group for each pair of outer units, as ``Family.pair_gains`` does.
    """
    size = len(total)
    chosen: dict[str, Tensor] = {}
    for name in family.inner:
        gains = inside(name)
        rows = torch.empty(size, size, family.spec.groups[name], dtype=torch.int64)
        best_inside = torch.empty(size, size, dtype=torch.float64)
        for i, j in product(range(size), repeat=2):
            pair = gains(i, j)
            rows[i, j] = assign(pair)
            best_inside[i, j] = pair.gather(1, rows[i, j][:, None]).sum(dtype=torch.float64)
        total = total + best_inside
        chosen[name] = rows
    best = assign(total)
    return {family.group: best, **{name: rows[torch.arange(size), best] for name, rows in chosen.items()}}


def match_inside(family: Family, inside: Iterable[str], indices: Indices) -> dict[str, Tensor]:
    """Return an improvement by moving some inner groups of a family, one at a time, with the outer one held."""
    change: dict[str, Tensor] = {}
    for inner in inside:
        now = {**indices, **change}
        gains = family.inner_gains(inner, now)
        best = torch.stack([assign(one) for one in gains])
        if not torch.equal(best, now[inner]):
            change |= _if_better(family, now, {inner: best}) or {}
    return change


#: Rounds of matching the inner groups in turn; two or three suffice.
ROUNDS = 10

#: Gains of two inner groups, by their names: ``(first, second, first, second)``.
_Shared = Mapping[tuple[str, str], Tensor]


def match_nested(family: Family, indices: Indices) -> dict[str, Tensor]:
    """Return good permutations of a group and its inner groups, with the other groups held.

    Args:
        family: a group with inner groups; blocks with two inner groups count, blocks with more don't.
        indices: current permutations of all groups.
    """
    total = family.gains((family.group,), indices).double()
    alone = {name: family.gains((family.group, name), indices).transpose(1, 2) for name in family.inner}
    shared = _shared(family, indices)
    size = len(total)
    rows = {name: torch.empty(size, *gains.shape[1:3], dtype=torch.int64) for name, gains in alone.items()}
    for i in range(size):
        for j in range(size):
            chosen, worth = _inside(
                {name: gains[i, j] for name, gains in alone.items()},
                {names: gains[i, j] for names, gains in shared.items()},
            )
            total[i, j] += worth
            for name, index in chosen.items():
                rows[name][i, j] = index
    best = assign(total)
    return {family.group: best, **{name: table[torch.arange(size), best] for name, table in rows.items()}}


def _inside(alone: Mapping[str, Tensor], shared: _Shared) -> tuple[dict[str, Tensor], float]:
    """Return permutations of the inner groups for one pair of units, and their gain."""
    chosen = {name: assign(gains) for name, gains in alone.items()}
    for _ in range(ROUNDS if shared else 0):
        before = dict(chosen)
        for name, gains in alone.items():
            for names, one in shared.items():
                if name in names:
                    gains = gains + _seen(names, one, name, chosen)
            chosen[name] = assign(gains)
        if all(torch.equal(index, before[name]) for name, index in chosen.items()):
            break
    worth = sum(float(gains.gather(1, chosen[name][:, None]).double().sum()) for name, gains in alone.items())
    for (first, second), gains in shared.items():
        seen = _seen((first, second), gains, first, chosen)
        worth += float(seen.gather(1, chosen[first][:, None]).double().sum())
    return chosen, worth


def _seen(names: tuple[str, str], gains: Tensor, name: str, chosen: Mapping[str, Tensor]) -> Tensor:
    """Return the gains of one of two groups, with the other one permuted as chosen."""
    first, second = names
    if name == first:
        return gains[:, torch.arange(gains.shape[1]), :, chosen[second]].sum(0)
    return gains[torch.arange(gains.shape[0]), :, chosen[first]].sum(0)


def _shared(family: Family, indices: Indices) -> dict[tuple[str, str], Tensor]:
    """Return the gains of two inner groups for every pair of units of their outer group."""
    result: dict[tuple[str, str], Tensor] = {}
    for pair in family.pairs:
        inside = tuple(name for name in family.inner if name in pair.groups)
        own = [group for group in pair.groups if group in family.members()]
        if len(inside) == 2 and len(own) == 3:
            gains = _gains(family, pair, (family.group, *inside), indices)
            names = (inside[0], inside[1])
            result[names] = result[names] + gains if names in result else gains
    return result


def _gains(family: Family, pair: Pair, groups: tuple[str, ...], indices: Indices) -> Tensor:
    """Return the gains of three groups in a block, ``(outer, outer, first, second, first, second)``."""
    places = [pair.groups.index(group) for group in groups]
    dims = tuple(None if place in places else dim for place, dim in enumerate(pair.source.dims))
    moved = permute_block(Block(pair.source.view, dims), indices, family.spec.outer)  # type: ignore[arg-type]
    order = [*places, *(place for place in range(moved.ndim) if place not in places)]
    sizes = [moved.shape[place] for place in places]
    a, b = (block.permute(order).reshape(math.prod(sizes), -1) for block in (pair.target, moved))
    return (a @ b.T).view(*sizes, *sizes).permute(0, 3, 1, 2, 4, 5)
