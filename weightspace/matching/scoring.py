"""A way down in which every pair of units has a score, and Sinkhorn's operator makes a soft permutation of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Generator, Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.assignment import assign
from weightspace.matching.ends import Ends
from weightspace.matching.families import Indices
from weightspace.matching.sinkhorn import sinkhorn
from weightspace.matching.soft import matrices_of, permute_softly
from weightspace.suggestions import unknown
from weightspace.symmetry import Permutation

#: Where scores start: at random with a standard deviation of one, or with a lead of one for every unit's own place.
Start: TypeAlias = Literal["noise", "identity"]
#: Standard deviation of the scores beside the lead: breaks the ties.
_TIES = 0.01


class Scoring:
    """Scores of every source unit at every target unit of a group.

    Args:
        ends: the two networks.
        aim: what is lowered: takes the moved parameters of the source and a batch.
        start: where the scores start.
        temperature: what they are divided by.
        hard: whether the aim sees the permutation of the best assignment, the gradient passing straight through to
            the soft one.
        generator: draws the noise.
    """

    def __init__(
        self,
        ends: Ends,
        aim: Callable[[StateDict, Any], Tensor],
        *,
        start: Start,
        temperature: float,
        hard: bool,
        generator: Generator,
    ) -> None:
        if start not in get_args(Start):
            raise unknown("start of the scores", start, get_args(Start))
        if not temperature > 0:
            raise WeightspaceError(f"The temperature must be above 0, got {temperature}.")
        self.ends, self.aim, self.temperature, self.hard = ends, aim, temperature, hard
        self.scores: dict[str, Tensor] = {}
        for group, lead in matrices_of(Permutation.identity(ends.spec)).items():
            noise = torch.randn(lead.shape, generator=generator)
            self.scores[group] = (noise if start == "noise" else lead + _TIES * noise).requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        """The scores."""
        return list(self.scores.values())

    def loss(self, batch: Any) -> Tensor:
        """Return what is lowered, differentiable in the scores."""
        return self.aim(permute_softly(self.ends.spec, self._matrices(), self.ends.movable), batch)

    def _matrices(self) -> dict[str, Tensor]:
        soft = {group: sinkhorn(scores / self.temperature) for group, scores in self.scores.items()}
        if not self.hard:
            return soft
        hard = matrices_of(Permutation(self.ends.spec, self.indices()))
        return {group: hard[group] + (matrix - matrix.detach()) for group, matrix in soft.items()}

    @torch.no_grad()
    def indices(self) -> Indices:
        """Return the best assignment of every group over its scores, the limit of no temperature."""
        return {
            group: assign(scores) if scores.ndim == 2 else torch.stack([assign(one) for one in scores])
            for group, scores in self.scores.items()
        }
