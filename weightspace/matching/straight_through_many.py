"""Straight-through estimation for several models: permutations driven by the loss of their random mixtures."""

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
from weightspace.matching.loss_driven import EndpointPair, Losses, Schedule, Trial, endless, search
from weightspace.matching.multi_model import ManyMatching, ModelSet
from weightspace.matching.straight_through import Projecting
from weightspace.matching.weight_matching import match_weights
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads


@checked
def straight_through_many(
    spec: PermutationSpec,
    task: Task,
    states: Sequence[StateDict],
    *,
    seed: int = 0,
    steps: int = 200,
    learning_rate: float = 1e-3,
    sweeps: int = 2,
    every: int = 20,
    device: torch.device | str | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> ManyMatching:
    """Bring several models into one basin by the loss of their mixtures (STE-MM).

    The first model stays. For each other there is a free copy of the first one's weights, to which it is matched at
    every step, from the permutation that it had. The loss is that of a mixture of the permuted models, its shares
    drawn uniformly from the simplex, and the gradient goes to the free copies as if matching changed nothing.

    Args:
        spec: the architecture's spec.
        task: has the training batches that are learnt from, the validation batches that judge, and the loss.
        states: two models or more; not changed.
        seed: of the shares, and of the order of batches and groups.
        steps: of Adam, a batch each.
        learning_rate: of Adam.
        sweeps: passes over all groups in a projection, at most.
        every: steps after which the permutations are judged.
        device: where the network runs; where the task builds it if not given.
        on_trial: told of every judgement.

    Returns:
        The permutations with the lowest mean validation loss of the mean network, and that mean; the objective is
        minus that loss in nats, the highest so far: as the models came, matched to the first, and after every trial.

    Raises:
        CheckpointError: a model does not fit the spec or the task, or holds non-finite weights.
        WeightspaceError: there are fewer than two models, their integer tensors differ, an option is out of range,
            or the loss is not finite any more.

    Source:
        Ito et al. 2025, https://proceedings.mlr.press/v267/ito25a.html, algorithm 1.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> matching = ws.straight_through_many(spec, task, [a, b], steps=2)  # few steps, for the example
        >>> len(matching.permutations)
        2
    """
    schedule = Schedule(steps, learning_rate, every)
    basin = ModelSet(spec, states)
    first, others = states[0], states[1:]
    generator = torch.Generator().manual_seed(seed)
    with torch_threads(threads_of(task)):
        losses = Losses(task, device=device)
        starts = [match_weights(spec, first, other, seed=seed).permutation.indices for other in others]
        projections = [
            Projecting(EndpointPair(spec, first, other), losses, start=start, sweeps=sweeps, generator=generator)
            for other, start in zip(others, starts, strict=True)
        ]
        way = Mixing(projections, losses, generator)
        came = (Permutation.identity(spec).indices,) * len(others)
        best = search(way, way.judge, came, endless(task, generator), schedule, on_trial)
    basin.place([Permutation.identity(spec), *(Permutation(spec, indices) for indices in best.found)])
    return basin.result([-loss for loss in best.history])


class Mixing:
    """A way down in which random mixtures of the first model and the projected others are what the loss sees.

    Args:
        projections: one for each model but the first, their target.
        losses: of the task.
        generator: draws the shares.
    """

    def __init__(self, projections: Sequence[Projecting], losses: Losses, generator: Generator) -> None:
        self.projections, self.losses, self.generator = projections, losses, generator

    @property
    def leaves(self) -> list[Tensor]:
        """The free weights of all projections."""
        return [leaf for projection in self.projections for leaf in projection.leaves]

    def loss(self, batch: Any) -> Tensor:
        """Return the loss at a random mixture, its gradient handed on to the free weights."""
        first = self.projections[0].ends
        models = [first.fixed, *(projection.through() for projection in self.projections)]
        shares = simplex(len(models), self.generator)
        mixture = by_name(models, lambda _, tensors: affine(tensors, shares))
        return self.losses({**first.target, **mixture}, batch)

    def indices(self) -> tuple[Indices, ...]:
        """Return the permutations of all models but the first as they are now."""
        return tuple(projection.indices() for projection in self.projections)

    def judge(self, found: Sequence[Indices]) -> float:
        """Return the mean validation loss of the mean network."""
        first = self.projections[0].ends
        moved = [projection.ends.permuted(indices) for projection, indices in zip(self.projections, found, strict=True)]
        return self.losses.mean({**first.target, **mean([first.fixed, *moved])})


def simplex(count: int, generator: Generator) -> list[float]:
    """Draw shares that sum to one, uniformly: the gaps between random points of an interval."""
    cuts = torch.rand(count - 1, generator=generator, dtype=torch.float64).sort().values
    return torch.cat([torch.zeros(1), cuts, torch.ones(1)]).diff().tolist()
