"""Labels at one place, such as synonyms: weights of one place are added up, and of its labels the first is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from weightspace.labels.rules.rule import Rule

#: Makes a rule for places, each of them once.
Make = Callable[[np.ndarray, np.ndarray], Rule]


class SharedPlaces(Rule):
    """A rule among places, as one among labels of which several may be at one place.

    Args:
        observed: place of every observed label.
        outputs: place of every output.
        make: makes the rule for different observed places and different outputs.
    """

    column: Tensor
    place: Tensor
    first: Tensor

    def __init__(self, observed: np.ndarray, outputs: np.ndarray, make: Make) -> None:
        super().__init__()
        seen, column = np.unique(observed, return_inverse=True)
        _, first, place = np.unique(outputs, return_index=True, return_inverse=True)
        by_label = np.argsort(first)  # places in the order of their first labels, so that ties go to the lowest
        rank = np.empty_like(by_label)
        rank[by_label] = np.arange(len(by_label))
        self.rule = make(seen, outputs[np.sort(first)])
        self.outputs, self.width, self.places = len(outputs), max(self.rule.width, len(outputs)), len(seen)
        self.table("column", column)
        self.table("place", rank[place])
        self.table("first", np.sort(first))

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        return self.rule.costs(self._added(weights)).index_select(1, self.place)

    def decide(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        return self.first[self.rule.decide(self._added(weights))]

    def _added(self, weights: Tensor) -> Tensor:
        """Return the weight of every place, float64 (B, places)."""
        wide = weights.double()
        return wide.new_zeros((wide.shape[0], self.places)).index_add(1, self.column, wide)


def rule_among(observed: np.ndarray, outputs: np.ndarray, make: Make) -> Rule:
    """Return the rule among labels at some places, which may repeat."""
    different = all(len(np.unique(places)) == len(places) for places in (observed, outputs))
    return make(observed, outputs) if different else SharedPlaces(observed, outputs, make)
