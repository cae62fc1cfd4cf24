"""Discrete metric: the most probable label has the least expected cost."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from weightspace.labels.rules.rule import Rule


class MostProbable(Rule):
    """Distances of 0 and 1 between ``nodes`` labels."""

    column: Tensor
    present: Tensor

    def __init__(self, nodes: int, observed: np.ndarray, outputs: np.ndarray) -> None:
        super().__init__()
        column, present = np.zeros(nodes, dtype=np.int64), np.zeros(nodes)
        column[observed], present[observed] = np.arange(len(observed)), 1.0
        self.outputs = self.width = len(outputs)
        self.table("column", column[outputs])
        self.table("present", present[outputs])

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        return weights.double().sum(1, keepdim=True) - self._own(weights)

    def scores(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`; the negated weights, without the rounding of their sum."""
        return -self._own(weights)

    def _own(self, weights: Tensor) -> Tensor:
        return weights.index_select(1, self.column).double() * self.present
