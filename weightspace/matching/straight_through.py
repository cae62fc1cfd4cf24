"""Straight-through estimators: permutations in the forward pass, gradients that bypass them.

``"weight-matching"`` keeps a free copy of the target's weights, matches the source to it at every step, and passes the
gradient at the midpoint on to the copy. It starts from weight matching and keeps its alignment of singular vectors.

``"sinkhorn"`` learns scores of all pairs of units: the forward pass uses their best assignment, and the gradient goes
to the soft permutation computed from them by Sinkhorn's operator. It uses the weights only through the loss, and lowers
the barrier without aligning singular vectors.
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

#: Projections of the forward pass. The two find different solutions: see ``straight_through``.
Projection: TypeAlias = Literal["weight-matching", "sinkhorn"]

#: Projection -> learning rate of Adam: for weights, and for scores.
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
    """Permute a source towards a target by the loss at their midpoint, with a straight-through estimator.

    Args:
        spec: the architecture's spec.
        target: the checkpoint to match; not modified.
        source: the checkpoint to permute; not modified.
        task: required: provides training batches, validation batches and the loss.
        seed: determines the order of batches and groups, and the noise.
        projection: ``"weight-matching"`` or ``"sinkhorn"``.
        steps: Adam steps, of one batch each.
        learning_rate: by default 1e-3 for weights, 0.1 for scores.
        start: initial scores of ``"sinkhorn"``: ``"noise"`` (the default), or ``"identity"`` with noise.
        temperature: divides the scores of ``"sinkhorn"``.
        sweeps: maximum passes over all groups in a projection by weight matching.
        every: number of steps between evaluations of the permutation.
        device: where the network runs; by default, where the task builds it.
        on_progress: called after every ``"trial"``, with its loss and the ``best`` so far.

    Returns:
        The best permutation. The objective is the lowest mean validation loss at the midpoint so far, in nats.

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or the task, or has non-finite weights.
        WeightspaceError: no task, an option that the projection lacks, or a loss that is no longer finite.

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
    """Return the parametrization: scores of all pairs of units, or free weights that the source is matched to."""
    if projection == "sinkhorn":
        return _scores(ends, losses, start, temperature, generator)
    begin = match_weights(ends.spec, ends.target, ends.source, seed=seed).permutation.indices
    return Projecting(ends, losses, start=begin, sweeps=sweeps, generator=generator)


def _scores(ends: EndpointPair, losses: Losses, start: Start, temperature: float, generator: Generator) -> Scoring:
    """Return the scores of all pairs of units, to be learned from the loss at the midpoint."""

    def midpoint_loss(moved: StateDict, batch: Any) -> Tensor:
        return losses(ends.between(moved, 0.5), batch)

    return Scoring(ends, midpoint_loss, start=start, temperature=temperature, hard=True, generator=generator)


def _midpoint_judge(ends: EndpointPair, losses: Losses) -> Callable[[StateDict], float]:
    """Return the mean validation loss at the midpoint, as a function of the permuted source."""
    return lambda moved: losses.mean(ends.between(moved, 0.5))


def _check_projection(projection: str, start: Start | None) -> None:
    """Check that a projection is known, and supports ``start`` if it is given.

    Raises:
        WeightspaceError: it is unknown, or doesn't support ``start``.
    """
    if projection not in _RATES:
        raise unknown("projection", projection, _RATES)
    if start is not None and projection != "sinkhorn":
        raise WeightspaceError(
            f"start={start!r} was given for the projection {projection!r}, which starts at the target; only "
            "'sinkhorn' supports it."
        )


class Projecting:
    """Free weights, initialised with the target's; the loss uses the source matched to them.

    The forward pass is at the midpoint of the target and the matched source; the gradient goes to the free weights as
    if the projection were the identity. Each projection's ascent starts from the previous result.

    Args:
        ends: the two networks.
        losses: losses of the task.
        start: the matching of the source to the target.
        sweeps: maximum passes over all groups in a projection.
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
        """Return the loss at the midpoint, with its gradient passed on to the free weights."""
        return self.losses(self.ends.between(self.through(), 0.5), batch)

    def through(self) -> StateDict:
        """Return the parameters of the source as currently matched; their gradient goes to the free weights."""
        moved = self.ends.permuted(self.indices())
        passing = {tensor: tensor + (self.free[name] - self.free[name].detach()) for name, tensor in moved.items()}
        return {name: passing[tensor] for name, tensor in moved.items()}

    @torch.no_grad()
    def indices(self) -> Indices:
        """Return the matching of the source to the current free weights."""
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
