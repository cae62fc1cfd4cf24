"""The two networks of a matching that is driven by a loss, and the weights between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.state import tied_names
from weightspace.matching.families import Indices, precise
from weightspace.symmetry import Permutation, PermutationSpec, permute


@dataclass(frozen=True, eq=False)
class Ends:
    """A target that stays, a source to permute, and the spec of both.

    What moves are the parameters: floats that are no statistics, in float32 (float64 as it is). Names that share a
    tensor still do.
    """

    spec: PermutationSpec
    target: StateDict
    source: StateDict

    @cached_property
    def fixed(self) -> StateDict:
        """The parameters of the target."""
        return self._parameters(self.target)

    @cached_property
    def movable(self) -> StateDict:
        """The parameters of the source."""
        return self._parameters(self.source)

    def permuted(self, indices: Indices) -> StateDict:
        """Return the parameters of the source in a new order."""
        return self._parameters(permute(self.spec, Permutation(self.spec, indices), self.source))

    def between(self, moved: StateDict, position: float) -> StateDict:
        """Return every tensor of a network at a position from the target (0) to some moved parameters (1)."""
        line = {name: self.fixed[name] + position * (tensor - self.fixed[name]) for name, tensor in moved.items()}
        return {**self.target, **line}

    def distance(self, moved: StateDict) -> Tensor:
        """Return the squared distance of some moved parameters from the target's."""
        return torch.stack([(tensor - self.fixed[name]).square().sum() for name, tensor in moved.items()]).sum()

    def _parameters(self, state: StateDict) -> StateDict:
        tied = tied_names(state)
        result: StateDict = {}
        for name in self.spec.axes:
            if name not in self.spec.statistics and state[name].is_floating_point():
                twin = result.get(tied.get(name, ""))
                result[name] = precise(state[name]) if twin is None else twin
        return result
