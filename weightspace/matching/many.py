"""What every way of matching three networks and more returns: a permutation a model, and the network in the middle."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.checkpoints import StateDict
from weightspace.reprs import brief
from weightspace.symmetry import Permutation


@brief
@dataclass(frozen=True)
class ManyMatching:
    """Permutations that bring several models into one basin, and their mean there.

    The order of units that the models share (the universe) is that of the first model, whose permutation is the
    identity: renaming the units of all models alike changes nothing, so that one of them may stay as it is.

    Attributes:
        permutations: one a model, in the order of the models, each into the shared order of units.
        merged: the mean of the permuted models; BatchNorm's running statistics too, which are better measured anew.
        objective: what the method raises, as the models came and from there on; never falls. The method says what
            it is.
    """

    permutations: tuple[Permutation, ...]
    merged: StateDict
    objective: tuple[float, ...]

    def between(self, target: int, source: int) -> Permutation:
        """Return the permutation that takes one model to another: into the shared order, and out of it again.

        It is the same whatever the way: ``between(a, b).compose(between(b, c))`` equals ``between(a, c)``, and a
        cycle ends in the identity.

        Args:
            target: the model that stays, counted from 0.
            source: the model to permute.
        """
        return self.permutations[target].inverse().compose(self.permutations[source])
