"""What the matchings that are driven by a loss share: steps of Adam, and the best permutation by held-out data.

The best permutation is copied when it is found, so that no later step can change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.ends import Ends
from weightspace.matching.families import Indices
from weightspace.matching.matching import Matching, matched
from weightspace.symmetry import Permutation
from weightspace.tasks.protocol import Task


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
        if not self.learning_rate > 0:
            raise WeightspaceError(f"The learning rate must be above 0, got {self.learning_rate}.")


class Way(Protocol):
    """What is descended: some leaves, a loss that reaches them, and the permutation that they stand for."""

    @property
    def leaves(self) -> list[Tensor]:
        """What Adam moves."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, differentiable in the leaves."""
        ...

    def indices(self) -> Indices:
        """Return the permutation that the leaves stand for now."""
        ...


class Best:
    """The best permutation so far, and the best loss after every trial."""

    def __init__(self) -> None:
        self.indices: dict[str, Tensor] = {}
        self.history: list[float] = []

    def offer(self, indices: Indices, loss: float) -> None:
        """Keep a copy of a permutation if it has the lowest loss so far; of equals the first is kept."""
        if not self.history or loss < self.history[-1]:
            self.indices = {group: index.clone() for group, index in indices.items()}
            self.history.append(loss)
        else:
            self.history.append(self.history[-1])


def descend(
    ends: Ends,
    way: Way,
    judge: Callable[[StateDict], float],
    batches: Iterable[Any],
    schedule: Schedule,
    on_trial: Callable[[Trial], None] | None,
) -> Matching:
    """Take the steps of a schedule, and return the best permutation that they led to.

    Args:
        ends: the two networks.
        way: what is descended.
        judge: returns how bad the permuted parameters of the source are.
        batches: as many as steps, at least.
        schedule: how many steps, how long.
        on_trial: told of every trial.

    Returns:
        The permutation of the lowest judgement, and the lowest so far as the source came, at the start of the way,
        and after every trial.

    Raises:
        WeightspaceError: the loss is not finite any more.
    """
    best = Best()

    def offer(indices: Indices) -> float:
        found = judge(ends.permuted(indices))
        best.offer(indices, found)
        return found

    offer(Permutation.identity(ends.spec).indices)
    offer(way.indices())
    optimizer = torch.optim.Adam(way.leaves, lr=schedule.learning_rate)
    for step, batch in zip(range(1, schedule.steps + 1), batches, strict=False):
        optimizer.zero_grad()
        loss = way.loss(batch)
        if not bool(loss.isfinite()):
            raise WeightspaceError(f"The loss is {float(loss.detach())} at step {step}. Is the learning rate too high?")
        loss.backward()
        optimizer.step()
        if step % schedule.every == 0 or step == schedule.steps:
            found = offer(way.indices())
            if on_trial is not None:
                on_trial(Trial(step, schedule.steps, found, best.history[-1]))
    settled = len(best.history) > 2 and best.history[-1] == best.history[-2]
    permutation = Permutation(ends.spec, best.indices)
    return matched(ends.spec, ends.target, ends.source, permutation, tuple(best.history), converged=settled)


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
