"""Straight-through estimation for several models: permutations driven by the loss of their random mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from weightspace.checkpoints import StateDict
from weightspace.elementwise.affine import affine
from weightspace.elementwise.mean import mean
from weightspace.elementwise.tying import by_name
from weightspace.errors import WeightspaceError
from weightspace.matching.basin import Basin
from weightspace.matching.losses import Losses
from weightspace.matching.many import ManyMatching
from weightspace.matching.weights import weight_matching
from weightspace.symmetry import PermutationSpec
from weightspace.tasks import EpochReport, Task
from weightspace.tasks.protocol import threads_of
from weightspace.threads import torch_threads


def straight_through_many(
    spec: PermutationSpec,
    task: Task,
    states: Sequence[StateDict],
    *,
    seed: int = 0,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    device: torch.device | str | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> ManyMatching:
    """Bring several models into one basin by the loss of their mixtures (STE-MM).

    The first model stays. Each other has a latent copy of the weights, which starts at those of the first. At every
    step each model is projected onto its latent copy by weight matching, from the permutation that it has; the loss
    is that of a mixture of the permuted models, with shares drawn uniformly from the simplex; and its gradient goes
    to the latent copies as if a projection were its latent copy, by Adam. Of the permutations at the start and after
    every epoch, those count whose mean network has the lowest held-out loss.

    Args:
        spec: the architecture's spec.
        task: has the loss; its training batches drive the search, its validation batches choose.
        states: two models or more; not changed.
        seed: shares, order and augmentation of the batches, order of the groups in the projections.
        epochs: passes over the training data; 0 leaves weight matching to the first model.
        learning_rate: of Adam.
        device: where the losses are computed; where the task builds the network if not given.
        on_epoch: told of every epoch, with the mean training loss of the mixtures in nats.

    Returns:
        One permutation a model, their mean, and minus the lowest held-out loss of the mean so far, in nats: as the
        models came, matched to the first, and after every epoch.

    Raises:
        CheckpointError: a model does not fit the spec or the task, or holds non-finite weights.
        WeightspaceError: there are fewer than two models, their integer tensors differ, ``epochs`` is negative, or
            the loss is not finite any more.

    Source:
        Ito et al. 2025, https://proceedings.mlr.press/v267/ito25a.html, algorithm 1.
    """
    if epochs < 0:
        raise WeightspaceError(f"epochs must be 0 or more, got {epochs}.")
    generator = torch.Generator().manual_seed(seed)
    basin, losses = Basin(spec, states), Losses(task, device=device)
    with torch_threads(threads_of(task)):
        history = [-losses.mean(mean(basin.moved))]
        latents = Latents(basin, losses, seed=seed, learning_rate=learning_rate)
        best = tuple(basin.permutations)
        for epoch in range(epochs + 1):
            if epoch:
                order = int(torch.randint(2**62, (), generator=generator))
                found = [latents.step(batch, generator) for batch in task.batches("train", order)]
                if on_epoch is not None:
                    on_epoch(EpochReport(epoch, epochs, math.fsum(found) / len(found)))
            latents.project()
            value = -losses.mean(mean(basin.moved))
            if value > history[-1]:
                best = tuple(basin.permutations)
            history.append(max(history[-1], value))
    basin.place(best)
    return basin.result(history)


class Latents:
    """Latent copies of the weights of all models but the first, and the optimiser that moves them."""

    def __init__(self, basin: Basin, losses: Losses, *, seed: int, learning_rate: float) -> None:
        self.basin, self.losses, self.seed = basin, losses, seed
        first, statistics = basin.wide[0], basin.spec.statistics
        self.names = [name for name, tensor in first.items() if tensor.is_floating_point() and name not in statistics]
        self.copies = [by_name([first], lambda _, one: one[0].clone()) for _ in basin.wide[1:]]
        tensors = {id(copy[name]): copy[name] for copy in self.copies for name in self.names}
        self.optimizer = torch.optim.Adam(tensors.values(), lr=learning_rate)
        self.matched = False

    def project(self) -> None:
        """Permute every model towards its latent copy, from where it stands."""
        permutations = self.basin.permutations[:1]
        for model, copy in enumerate(self.copies, start=1):
            start = self.basin.permutations[model] if self.matched else None
            found = weight_matching(self.basin.spec, copy, self.basin.wide[model], seed=self.seed, start=start)
            permutations.append(found.permutation)
        self.basin.place(permutations)
        self.matched = True

    def step(self, batch: Any, generator: Generator) -> float:
        """Project, and move the latent copies down the gradient at a random mixture; return its loss."""
        self.project()
        shares = simplex(len(self.basin.moved), generator)
        mixture = by_name(self.basin.moved, lambda _, tensors: _mixed(tensors, shares))
        wanted = {id(mixture[name]): mixture[name].requires_grad_() for name in self.names}
        loss = self.losses(mixture, batch)
        if not loss.isfinite():
            raise WeightspaceError(f"The loss of a mixture is {float(loss.detach())}. Is the learning rate too high?")
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        gradients = dict(zip(wanted, found, strict=True))
        for share, copy in zip(shares[1:], self.copies, strict=True):
            for name in self.names:
                gradient = gradients[id(mixture[name])]
                copy[name].grad = None if gradient is None else share * gradient
        self.optimizer.step()
        return float(loss.detach())


def _mixed(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return affine(tensors, shares) if tensors[0].is_floating_point() else tensors[0]


def simplex(count: int, generator: Generator) -> list[float]:
    """Draw shares that sum to one, uniformly: gaps between sorted points of an interval."""
    cuts = torch.rand(count - 1, generator=generator, dtype=torch.float64).sort().values
    ends = torch.cat([torch.zeros(1), cuts, torch.ones(1)])
    return ends.diff().tolist()
