"""A way down in which a free copy of the target's weights is projected to a permutation at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from weightspace.checkpoints import StateDict
from weightspace.matching.ascent import Ascent, Workers
from weightspace.matching.ends import Ends
from weightspace.matching.families import Indices, families, pair_blocks
from weightspace.matching.losses import Losses


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

    def __init__(self, ends: Ends, losses: Losses, *, start: Indices, sweeps: int, generator: Generator) -> None:
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
        ascent = Ascent(families(spec, pairs), self.current)
        with Workers(1) as workers:
            for _ in range(self.sweeps):
                order = torch.randperm(len(ascent.families), generator=self.generator).tolist()
                if not ascent.sweep(order, workers):
                    break
        self.current = ascent.indices
        return self.current
