"""Straight-through estimators: permutations in the forward pass, gradients that bypass them.

``"weight-matching"`` keeps a free copy of the target's weights, matches the source to it at every step, and passes the
gradient at the midpoint on to the copy. It starts at weight matching, and keeps the singular vectors that this aligned.

``"sinkhorn"`` learns scores of all pairs of units: the forward pass uses their best assignment, the gradient goes to
the soft permutation that Sinkhorn's operator makes of them. It sees the weights only through the loss, and lowers the
barrier without aligning them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.coordinate_ascent import AscentState, Workers
from weightspace.matching.gains import Indices, families, pair_blocks
from weightspace.matching.loss_driven import EndpointPair, Losses, Schedule, descend, endless, endpoints, task_of
from weightspace.matching.result import Matching
from weightspace.matching.soft_permutations import Scoring, Start
from weightspace.matching.weight_matching import match_weights
from weightspace.progress import Progress
from weightspace.suggestions import unknown
from weightspace.symmetry import PermutationSpec
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: How the forward pass comes by its permutation. The two end in different places: see ``straight_through``.
Projection: TypeAlias = Literal["weight-matching", "sinkhorn"]

#: Projection -> step length of Adam: on weights, and on scores.
_RATES = {"weight-matching": 1e-3, "sinkhorn": 0.1}


@checked
def straight_through(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    projection: Projection = "weight-matching",
    steps: int = 200,
    learning_rate: float | None = None,
    start: Start | None = None,
    temperature: float = 1.0,
    sweeps: int = 2,
    every: int = 20,
    device: torch.device | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Permute a source towards a target by the loss halfway between them, with a straight-through estimator.

    Args:
        spec: the architecture's spec.
        target: the checkpoint to match; not changed.
        source: the checkpoint to permute; not changed.
        task: required: provides training batches, validation batches and the loss.
        seed: of the order of batches and groups, and of the noise.
        projection: which of the two.
        steps: of Adam, a batch each.
        learning_rate: by default 1e-3 on weights, 0.1 on scores.
        start: initial scores of ``"sinkhorn"``: ``"noise"`` (the default), or ``"identity"`` with noise.
        temperature: divides the scores of ``"sinkhorn"``.
        sweeps: passes over all groups in a projection by weight matching, at most.
        every: steps after which the permutation is judged.
        device: where the network runs; where the task builds it if not given.
        on_progress: told of every ``"trial"``, with its loss and the ``best`` so far.

    Returns:
        The best permutation. The objective is the lowest mean validation loss at the midpoint so far, in nats.

    Raises:
        CheckpointError: a checkpoint does not fit the spec or the task, or holds non-finite weights.
        WeightspaceError: no task, an option that the projection does not have, or a loss that is no longer finite.

    Source:
        Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836, section 3.3; https://arxiv.org/abs/2212.12042.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> matching = ws.straight_through(spec, a, b, task=task, steps=2)  # few, for the example
    """
    _check_projection(projection, start)
    task = task_of("straight_through", task)
    schedule = Schedule(steps, _RATES[projection] if learning_rate is None else learning_rate, every)
    ends, generator = endpoints(spec, target, source), torch.Generator().manual_seed(seed)
    with torch_threads(threads_of(task)):
        losses = Losses(task, device=device)
        free = _parametrization(projection, ends, losses, generator, seed, sweeps, start or "noise", temperature)
        return descend(ends, free, _midpoint_judge(ends, losses), endless(task, generator), schedule, on_progress)


def _parametrization(
    projection: Projection,
    ends: EndpointPair,
    losses: Losses,
    generator: Generator,
    seed: int,
    sweeps: int,
    start: Start,
    temperature: float,
) -> Projecting | Scoring:
    """Return what is descended: the scores of all pairs of units, or free weights matched to the source."""
    if projection == "sinkhorn":
        return _scores(ends, losses, start, temperature, generator)
    begin = match_weights(ends.spec, ends.target, ends.source, seed=seed).permutation.indices
    return Projecting(ends, losses, start=begin, sweeps=sweeps, generator=generator)


def _scores(ends: EndpointPair, losses: Losses, start: Start, temperature: float, generator: Generator) -> Scoring:
    """Return the scores of all pairs of units, to be learnt from the loss at the midpoint."""

    def midpoint_loss(moved: StateDict, batch: Any) -> Tensor:
        return losses(ends.between(moved, 0.5), batch)

    return Scoring(ends, midpoint_loss, start=start, temperature=temperature, hard=True, generator=generator)


def _midpoint_judge(ends: EndpointPair, losses: Losses) -> Callable[[StateDict], float]:
    """Return the mean validation loss at the midpoint, as a function of the permuted source."""
    return lambda moved: losses.mean(ends.between(moved, 0.5))


def _check_projection(projection: str, start: Start | None) -> None:
    """Check a projection, and that it has a choice of starts where one is given.

    Raises:
        WeightspaceError: it is unknown, or has no choice.
    """
    if projection not in _RATES:
        raise unknown("projection", projection, _RATES)
    if start is not None and projection != "sinkhorn":
        raise WeightspaceError(
            f"start={start!r} was given for the projection {projection!r}, which starts at the target; only "
            "'sinkhorn' has a choice."
        )


class Projecting:
    """Weights that start at the target's; the source matched to them is what the loss sees.

    The forward pass is at the midpoint of the target and the source so permuted; the gradient goes to the free
    weights as if projecting them changed nothing. The ascent of each projection begins where the last one ended.

    Args:
        ends: the two networks.
        losses: of the task.
        start: the matching of the source to the target.
        sweeps: passes over all groups in a projection, at most.
        generator: draws the order of the groups.
    """

    def __init__(
        self, ends: EndpointPair, losses: Losses, *, start: Indices, sweeps: int, generator: Generator
    ) -> None:
        self.ends, self.losses, self.sweeps, self.generator = ends, losses, sweeps, generator
        self.current = dict(start)
        copies = {tensor: tensor.clone().requires_grad_() for tensor in ends.fixed.values()}
        self.free = {name: copies[tensor] for name, tensor in ends.fixed.items()}

    @property
    def leaves(self) -> list[Tensor]:
        """The free weights, each once."""
        return list(dict.fromkeys(self.free.values()))

    def loss(self, batch: Any) -> Tensor:
        """Return the loss at the midpoint, its gradient handed on to the free weights."""
        return self.losses(self.ends.between(self.through(), 0.5), batch)

    def through(self) -> StateDict:
        """Return the parameters of the source as matched now; their gradient goes to the free weights."""
        moved = self.ends.permuted(self.indices())
        passing = {tensor: tensor + (self.free[name] - self.free[name].detach()) for name, tensor in moved.items()}
        return {name: passing[tensor] for name, tensor in moved.items()}

    @torch.no_grad()
    def indices(self) -> Indices:
        """Return the matching of the source to the free weights as they are now."""
        spec = self.ends.spec
        pairs = pair_blocks(spec, {**self.ends.target, **self.free}, self.ends.source)
        ascent = AscentState(families(spec, pairs), self.current)
        with Workers(1) as workers:
            for _ in range(self.sweeps):
                order = torch.randperm(len(ascent.families), generator=self.generator).tolist()
                if not ascent.sweep(order, workers):
                    break
        self.current = ascent.indices
        return self.current
