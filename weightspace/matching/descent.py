"""What the matchings that are driven by a loss share: steps of Adam, and the best permutation by held-out data.

The best permutation is copied when it is found, so that no later step can change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.ends import Ends
from weightspace.matching.families import Indices
from weightspace.matching.matching import Matching, matched
from weightspace.symmetry import Permutation
from weightspace.tasks.protocol import Task

#: What a search finds: the permutation of one model, or those of several.
Found = TypeVar("Found")
Found_co = TypeVar("Found_co", covariant=True)


@dataclass(frozen=True)
class Trial:
    """A fact for a progress display: the permutation after ``step`` of ``steps`` was judged by its loss."""

    step: int
    steps: int
    loss: float
    best: float


@dataclass(frozen=True)
class Schedule:
    """How a descent goes: ``steps`` of Adam, judged after every ``every`` of them and at the end."""

    steps: int
    learning_rate: float
    every: int

    def __post_init__(self) -> None:
        if self.steps < 0 or self.every < 1:
            raise WeightspaceError(
                f"A descent has 0 steps or more and is judged every 1 or more; found {self.steps} and {self.every}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise WeightspaceError(f"The learning rate must be above 0 and finite, got {self.learning_rate}.")


class Way(Protocol[Found_co]):
    """What is descended: some leaves, a loss that reaches them, and the permutations that they stand for."""

    @property
    def leaves(self) -> list[Tensor]:
        """What Adam moves."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, differentiable in the leaves."""
        ...

    def indices(self) -> Found_co:
        """Return what the leaves stand for now: the permutation of one model, or of several."""
        ...


class Best(Generic[Found]):
    """The best permutations so far, and the best loss after every trial."""

    def __init__(self, found: Found, loss: float) -> None:
        self.found, self.history = deepcopy(found), [loss]

    def offer(self, found: Found, loss: float) -> None:
        """Keep a copy of what has the lowest loss so far; of equals the first is kept."""
        if loss < self.history[-1]:
            self.found = deepcopy(found)
        self.history.append(min(loss, self.history[-1]))


def search(
    way: Way[Found],
    judge: Callable[[Found], float],
    came: Found,
    batches: Iterable[Any],
    schedule: Schedule,
    on_trial: Callable[[Trial], None] | None,
) -> Best[Found]:
    """Take the steps of a schedule, and return the best permutations that they led to.

    Args:
        way: what is descended.
        judge: returns how bad permutations are.
        came: the permutations of networks that stay as they came.
        batches: as many as steps, at least.
        schedule: how many steps, how long.
        on_trial: told of every trial.

    Returns:
        What is judged lowest, and the lowest so far of ``came``, at the start of the way, and after every trial.

    Raises:
        WeightspaceError: the loss is not finite any more.
    """
    best = Best(came, judge(came))
    best.offer(start := way.indices(), judge(start))
    optimizer = torch.optim.Adam([{"params": way.leaves}], lr=schedule.learning_rate)
    for step, batch in zip(range(1, schedule.steps + 1), batches, strict=False):
        optimizer.zero_grad()
        loss = way.loss(batch)
        if not bool(loss.isfinite()):
            raise WeightspaceError(f"The loss is {loss.item()} at step {step}. Is the learning rate too high?")
        loss.backward()
        optimizer.step()
        if step % schedule.every == 0 or step == schedule.steps:
            best.offer(found := way.indices(), bad := judge(found))
            if on_trial is not None:
                on_trial(Trial(step, schedule.steps, bad, best.history[-1]))
    return best


def descend(
    ends: Ends,
    way: Way[Indices],
    judge: Callable[[StateDict], float],
    batches: Iterable[Any],
    schedule: Schedule,
    on_trial: Callable[[Trial], None] | None,
) -> Matching:
    """Search for the permutation of the source whose permuted parameters are judged lowest.

    Args:
        ends: the two networks.
        way: what is descended.
        judge: returns how bad the permuted parameters of the source are.
        batches: as many as steps, at least.
        schedule: how many steps, how long.
        on_trial: told of every trial.

    Raises:
        WeightspaceError: the loss is not finite any more.
    """
    if not ends.spec.groups:  # nothing to learn
        schedule = replace(schedule, steps=0)
    came = Permutation.identity(ends.spec).indices
    best = search(way, lambda indices: judge(ends.permuted(indices)), came, batches, schedule, on_trial)
    history = tuple(best.history)
    settled = len(history) > 2 and history[-1] == history[-2]
    permutation = Permutation(ends.spec, best.found)
    return matched(ends.spec, ends.target, ends.source, permutation, history, converged=settled)


def endless(task: Task, generator: Generator) -> Iterator[Any]:
    """Yield training batches without end, each epoch in an order of its own.

    Raises:
        WeightspaceError: there are none.
    """
    while True:
        empty = True
        for batch in task.batches("train", int(torch.randint(2**62, (), generator=generator))):
            empty = False
            yield batch
        if empty:
            raise WeightspaceError(f"Task {task.name!r} has no training batches; a matching by its loss needs them.")
