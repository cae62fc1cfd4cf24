"""Sinkhorn re-basin: soft permutations optimised by a loss and hardened at the end.

Sinkhorn's operator, differentiated implicitly, turns scores of all pairs of units into doubly stochastic matrices. The
source is permuted softly while the scores are learned; the result is their best assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Generator, Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.loss_driven import EndpointPair, Losses, Schedule, descend, endless, endpoints
from weightspace.matching.result import Matching
from weightspace.matching.soft_permutations import Scoring, Start
from weightspace.progress import Progress
from weightspace.suggestions import unknown
from weightspace.symmetry import PermutationSpec
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Objectives: the task's loss at the midpoint, at a random position, or the squared distance of the weights.
Aim: TypeAlias = Literal["midpoint", "random", "l2"]


@checked
def sinkhorn_rebasin(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    loss: Aim = "midpoint",
    steps: int = 200,
    learning_rate: float = 0.1,
    start: Start = "identity",
    temperature: float = 1.0,
    every: int = 20,
    device: torch.device | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Permute a source towards a target by gradient descent on a loss over soft permutations.

    Args:
        spec: the architecture's spec.
        target: the checkpoint to match; not modified.
        source: the checkpoint to permute; not modified.
        task: provides training batches, validation batches and the loss; only ``"l2"`` works without one.
        seed: determines the order of the batches, the noise and the positions.
        loss: the task's loss at the ``"midpoint"``, or at a ``"random"`` position in every step; ``"l2"`` of the
            weights.
        steps: Adam steps, of one batch each.
        learning_rate: learning rate of the scores.
        start: initial scores: ``"identity"`` with a little noise, or only ``"noise"``.
        temperature: divides the scores.
        every: number of steps between evaluations of the permutation.
        device: where the network runs; by default, where the task builds it.
        on_progress: called after every ``"trial"``, with its loss and the ``best`` so far.

    Returns:
        The best permutation of all trials. The objective is the lowest so far (mean validation loss at the midpoint, in
        nats, or the squared distance): for the unpermuted source, at the start, and after every trial.

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or the task, or has non-finite weights.
        WeightspaceError: unknown loss, a missing task, or a loss that is no longer finite.

    Source:
        Peña et al. 2023, https://arxiv.org/abs/2212.12042.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> matching = ws.sinkhorn_rebasin(spec, a, b, loss="l2", steps=2)  # few, for the example
    """
    _check_loss(loss, task)
    schedule = Schedule(steps, learning_rate, every)
    ends = endpoints(spec, target, source)
    generator = torch.Generator().manual_seed(seed)
    with torch_threads(1 if task is None else threads_of(task)):
        aim, judge, batches = _aim(ends, task, loss, device, generator)
        parametrization = Scoring(ends, aim, start=start, temperature=temperature, hard=False, generator=generator)
        return descend(ends, parametrization, judge, batches, schedule, on_progress)


def _check_loss(loss: str, task: Task | None) -> None:
    """Check that a loss is known and has the task it needs.

    Raises:
        WeightspaceError: it is unknown, or lacks a task.
    """
    if loss not in get_args(Aim):
        raise unknown("loss of Sinkhorn re-basin", loss, get_args(Aim))
    if task is None and loss != "l2":
        raise WeightspaceError(f"Sinkhorn re-basin by the loss {loss!r} needs a task; only 'l2' works without one.")


def _aim(
    ends: EndpointPair, task: Task | None, loss: Aim, device: torch.device | str | None, generator: Generator
) -> tuple[Callable[[StateDict, Any], Tensor], Callable[[StateDict], float], Iterable[Any]]:
    """Return the training objective, the evaluation, and the batches."""
    if task is None or loss == "l2":
        return *_by_distance(ends), repeat(None)
    return *_by_loss(ends, Losses(task, device=device), loss, generator), endless(task, generator)


def _by_distance(ends: EndpointPair) -> tuple[Callable[[StateDict, Any], Tensor], Callable[[StateDict], float]]:
    """Return training objective and evaluation for the distance of the weights."""
    return lambda moved, _: ends.distance(moved), lambda moved: float(ends.distance(moved))


def _by_loss(
    ends: EndpointPair, losses: Losses, loss: Aim, generator: Generator
) -> tuple[Callable[[StateDict, Any], Tensor], Callable[[StateDict], float]]:
    """Return training objective and evaluation for the task's loss."""

    def aim(moved: StateDict, batch: Any) -> Tensor:
        position = 0.5 if loss == "midpoint" else float(torch.rand((), generator=generator))
        return losses(ends.between(moved, position), batch)

    return aim, lambda moved: losses.mean(ends.between(moved, 0.5))
