"""Straight-through estimation for several models: permutations optimised by the loss of random mixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from weightspace.arguments import checked
from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.mean import mean
from weightspace.arithmetic.tied_tensors import by_name
from weightspace.checkpoints import StateDict
from weightspace.matching.gains import Indices
from weightspace.matching.loss_driven import EndpointPair, Losses, Schedule, endless, search, task_of
from weightspace.matching.multi_model import ManyMatching, ModelSet
from weightspace.matching.straight_through import Projecting
from weightspace.matching.weight_matching import match_weights
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads


@checked
def straight_through_many(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    *,
    task: Task | None = None,
    seed: int = 0,
    steps: int = 200,
    learning_rate: float = 1e-3,
    sweeps: int = 2,
    every: int = 20,
    device: torch.device | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ManyMatching:
    """Bring several models into one basin by the loss of their mixtures (STE-MM).

    The first model stays fixed. At every step, each other model is matched to its own free copy of the first one's
    weights. The loss is that of a random mixture of the permuted models, with weights uniform on the simplex; the
    gradient goes to the free copies.

    Args:
        spec: the architecture's spec.
        states: at least two models; not modified.
        task: required: provides training batches, validation batches and the loss.
        seed: determines the mixture weights, and the order of batches and groups.
        steps: Adam steps, of one batch each.
        learning_rate: learning rate of Adam.
        sweeps: maximum passes over all groups in a projection.
        every: number of steps between evaluations of the permutations.
        device: where the network runs; by default, where the task builds it.
        on_progress: called after every ``"trial"``, with its loss and the ``best`` so far.

    Returns:
        The permutations with the lowest mean validation loss of the mean network, and that mean; the objective is the
        negative loss in nats, the highest so far: initially, matched to the first model, and after every trial.

    Raises:
        CheckpointError: a model doesn't fit the spec or the task, or has non-finite weights.
        WeightspaceError: no task, fewer than two models, different integer tensors, or an option or loss out of range.

    Source:
        Ito et al. 2025, https://proceedings.mlr.press/v267/ito25a.html, algorithm 1.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> matching = ws.straight_through_many(spec, [a, b], task=task, steps=2)  # few steps, for the example
    """
    schedule = Schedule(steps, learning_rate, every)
    basin = ModelSet(spec, states)
    task = task_of("straight_through_many", task)
    generator = torch.Generator().manual_seed(seed)
    with torch_threads(threads_of(task)):
        losses = Losses(task, device=device)
        parametrization = Mixing(_projections(spec, states, losses, seed, sweeps, generator), losses, generator)
        identity = (Permutation.identity(spec).indices,) * (len(states) - 1)
        best = search(parametrization, parametrization.judge, identity, endless(task, generator), schedule, on_progress)
    basin.place([Permutation.identity(spec), *(Permutation(spec, indices) for indices in best.found)])
    return basin.result([-loss for loss in best.history])


def _projections(
    spec: PermutationSpec, states: Sequence[StateDict], losses: Losses, seed: int, sweeps: int, generator: Generator
) -> list[Projecting]:
    """Return a free copy of the first model for each other model, initially matched to it by weights."""
    first, *others = states
    starts = [match_weights(spec, first, other, seed=seed).permutation.indices for other in others]
    return [
        Projecting(EndpointPair(spec, first, other), losses, start=start, sweeps=sweeps, generator=generator)
        for other, start in zip(others, starts, strict=True)
    ]


class Mixing:
    """A parametrization whose loss is that of random mixtures of the first model and the projected others.

    Args:
        projections: one for each model but the first, which is their target.
        losses: losses of the task.
        generator: draws the mixture weights.
    """

    def __init__(self, projections: Sequence[Projecting], losses: Losses, generator: Generator) -> None:
        self.projections, self.losses, self.generator = projections, losses, generator

    @property
    def leaves(self) -> list[Tensor]:
        """The free weights of all projections."""
        return [leaf for projection in self.projections for leaf in projection.leaves]

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a random mixture, with its gradient passed on to the free weights."""
        first = self.projections[0].ends
        models = [first.fixed, *(projection.through() for projection in self.projections)]
        shares = simplex(len(models), self.generator)
        mixture = by_name(models, lambda _, tensors: affine(tensors, shares))
        return self.losses({**first.target, **mixture}, batch)

    def indices(self) -> tuple[Indices, ...]:
        """Return the current permutations of all models but the first."""
        return tuple(projection.indices() for projection in self.projections)

    def judge(self, found: Sequence[Indices]) -> float:
        """Return the mean validation loss of the mean network."""
        first = self.projections[0].ends
        moved = [projection.ends.permuted(indices) for projection, indices in zip(self.projections, found, strict=True)]
        return self.losses.mean({**first.target, **mean([first.fixed, *moved])})


def simplex(count: int, generator: Generator) -> list[float]:
    """Draw weights that sum to one, uniformly: the gaps between random points of an interval."""
    cuts = torch.rand(count - 1, generator=generator, dtype=torch.float64).sort().values
    return torch.cat([torch.zeros(1), cuts, torch.ones(1)]).diff().tolist()
