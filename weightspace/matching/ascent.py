"""Coordinate ascent: sweeps over all families of groups, each given its best permutation while the others are held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from weightspace.matching.families import Family, Indices, Pair, families
from weightspace.matching.steps import step
from weightspace.symmetry import PermutationSpec


@dataclass(frozen=True)
class Sweep:
    """A fact for a progress display: one pass over all groups ended."""

    number: int
    objective: float
    moved: int


@dataclass(frozen=True)
class Summit:
    """Where an ascent ended: permutations, the objective after every sweep, and whether the last one moved nothing."""

    indices: dict[str, Tensor]
    history: tuple[float, ...]
    converged: bool


class Climb:
    """Ascents over the same pairs of blocks, from any start.

    Args:
        spec: the architecture's spec.
        pairs: blocks of the target beside those of the source.
        workers: solve families that share no block.
        max_sweeps: passes over all groups of one ascent, at most.
        on_sweep: told of every sweep.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        pairs: list[Pair],
        workers: Workers,
        *,
        max_sweeps: int,
        on_sweep: Callable[[Sweep], None] | None = None,
    ) -> None:
        self.spec, self.pairs, self.workers = spec, pairs, workers
        self.families = families(spec, pairs)
        self.max_sweeps, self.on_sweep = max_sweeps, on_sweep

    def objective(self, indices: Indices) -> float:
        """Return Σ⟨A, π(B)⟩ over the pairs."""
        return math.fsum(pair.inner_product(indices, self.spec.outer) for pair in self.pairs)

    def ascend(self, start: Indices, generator: Generator) -> Summit:
        """Climb from a start, in an order of the groups that the generator draws for every sweep."""
        ascent = Ascent(self.families, dict(start))
        history: list[float] = []
        converged = False
        while len(history) < self.max_sweeps and not converged:
            order = torch.randperm(len(self.families), generator=generator).tolist()
            moved = ascent.sweep(order, self.workers)
            history.append(self.objective(ascent.indices) if moved or not history else history[-1])
            if self.on_sweep is not None:
                self.on_sweep(Sweep(len(history), history[-1], moved))
            converged = not moved
        return Summit(ascent.indices, tuple(history), converged)


class Ascent:
    """The state of coordinate ascent: permutations, and which families may still improve."""

    def __init__(self, listed: list[Family], indices: dict[str, Tensor]) -> None:
        self.families = listed
        self.indices = indices
        home = {group: number for number, family in enumerate(listed) for group in family.members()}
        self.neighbours = [{home[group] for group in family.neighbours()} for family in listed]
        self.stale = [True] * len(listed)

    def sweep(self, order: list[int], workers: Workers) -> int:
        """Step every stale family once, as if in this order, and return how many moved."""
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
        """Cut an order into runs of families that share no tensor; the result is that of the plain order."""
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
    """Threads that each keep their products to one core, so that sums come out alike on any number of them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.before = torch.get_num_threads()

    def __enter__(self) -> Workers:
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def map(self, function: Callable[[int], Indices | None], items: list[int]) -> Iterable[Indices | None]:
        """Return what a function makes of every item, in their order."""
        if self.threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        return list(self.pool.map(function, items))

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.before)
