"""Weight matching: permute the units of one network until its weights lie close to another's.

The convention: the *source* is permuted, towards the *target*, which stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, check_compatible, check_finite
from weightspace.errors import WeightspaceError
from weightspace.matching.families import Family, Indices, families, pair_blocks
from weightspace.matching.matching import Matching, l2_reduction
from weightspace.matching.outward import outward_start
from weightspace.matching.steps import step
from weightspace.symmetry import Permutation, PermutationSpec, check_fits, permute


@dataclass(frozen=True)
class Sweep:
    """A fact for a progress display: one pass over all groups ended."""

    number: int
    objective: float
    moved: int


def weight_matching(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    threads: int | None = None,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> Matching:
    """Permute a source towards a target by coordinate ascent on the inner product of their weights.

    One group at a time, the others held, gets the best permutation there is (an assignment problem). Groups whose
    neighbours have not moved since are skipped, and a step that does not improve the objective is not taken. The
    start is the better of the identity and a matching that works its way outward from the inputs and outputs.

    Args:
        spec: the architecture's spec.
        target: stays as it is.
        source: the checkpoint to permute; not changed.
        seed: order of the groups in each sweep.
        max_sweeps: passes over all groups, at most.
        threads: groups that share no tensor are solved side by side; the result does not depend on it. Default:
            as many as torch uses.
        on_sweep: told of every sweep.

    Returns:
        The permutation of the source, with the objective of every sweep.

    Raises:
        CheckpointError: a checkpoint does not fit the spec or holds non-finite weights.
        WeightspaceError: ``max_sweeps`` is below one.

    Source:
        Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836, algorithm 1.
    """
    if max_sweeps < 1:
        raise WeightspaceError(f"max_sweeps must be at least 1, got {max_sweeps}.")
    check_compatible(target, source, names=("the target", "the source"))
    check_fits(spec, target, "The target")
    check_fits(spec, source, "The source")
    for label, state in (("The target", target), ("The source", source)):
        check_finite({name: state[name] for name in spec.axes if name not in spec.statistics}, label)
    pairs = pair_blocks(spec, target, source)
    listed = families(spec, pairs)

    def objective(indices: Indices) -> float:
        return math.fsum(pair.inner_product(indices, spec.outer) for pair in pairs)

    converged = False
    generator = torch.Generator().manual_seed(seed)
    with _Workers(threads or torch.get_num_threads()) as workers:
        identity = dict(Permutation.identity(spec).indices)
        indices = max(identity, identity | outward_start(listed), key=objective)
        history = [objective(identity)]
        ascent = _Ascent(listed, indices)
        for number in range(1, max_sweeps + 1):
            order = torch.randperm(len(ascent.families), generator=generator).tolist()
            moved = ascent.sweep(order, workers)
            history.append(objective(indices) if moved or number == 1 else history[-1])
            if on_sweep is not None:
                on_sweep(Sweep(number, history[-1], moved))
            if converged := not moved:
                break
    permutation = Permutation(spec, indices)
    reduction = l2_reduction(spec, target, source, permute(spec, permutation, source))
    return Matching(permutation, tuple(history), reduction, converged)


class _Ascent:
    """The state of coordinate ascent: permutations, and which families may still improve."""

    def __init__(self, listed: list[Family], indices: dict[str, Tensor]) -> None:
        self.families = listed
        self.indices = indices
        home = {group: number for number, family in enumerate(listed) for group in family.members()}
        self.neighbours = [{home[group] for group in family.neighbours()} for family in listed]
        self.stale = [True] * len(listed)

    def sweep(self, order: list[int], workers: _Workers) -> int:
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


class _Workers:
    """Threads that each keep their products to one core, so that sums come out alike on any number of them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.before = torch.get_num_threads()

    def __enter__(self) -> _Workers:
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def map(self, function: Callable[[int], Indices | None], items: list[int]) -> Iterable[Indices | None]:
        if self.threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        return list(self.pool.map(function, items))

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.before)
