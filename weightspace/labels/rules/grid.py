"""Manhattan distances on a grid, by marginals over one or two axes at a time.

(Σ_a d_a)² = Σ_a d_a² + 2 Σ_{a<b} d_a d_b, and each term depends on the weights only through the marginal of its axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

import numpy as np
import torch
from torch import Tensor

from weightspace.labels.rules.rule import Rule


class OnGrid(Rule):
    """Expected distances (exponent 1) or squared distances (2) on a grid, whose last axis varies fastest."""

    column: Tensor
    present: Tensor
    answers: Tensor

    def __init__(self, shape: Sequence[int], observed: np.ndarray, outputs: np.ndarray, exponent: int) -> None:
        super().__init__()
        nodes = prod(shape)
        self.shape, self.exponent, self.outputs, self.width = tuple(shape), exponent, len(outputs), 4 * nodes
        column, present = np.zeros(nodes, dtype=np.int64), np.zeros(nodes)
        column[observed], present[observed] = np.arange(len(observed)), 1.0
        self.table("column", column)
        self.table("present", present)
        self.table("answers", outputs)
        for axis, size in enumerate(shape):
            steps = np.arange(size, dtype=np.float64)
            self.table(f"axis{axis}", np.abs(steps[:, None] - steps))

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        field = (weights.index_select(1, self.column).double() * self.present).view(-1, *self.shape)
        axes = range(len(self.shape))
        total = torch.zeros_like(field)
        for axis in axes:
            apart = self.get_buffer(f"axis{axis}")
            power = apart if self.exponent == 1 else apart * apart
            total = total + self._placed(self._marginal(field, axis) @ power, axis)
        if self.exponent == 2:
            for a, b in combinations(axes, 2):
                both = self.get_buffer(f"axis{a}") @ self._marginal(field, a, b) @ self.get_buffer(f"axis{b}")
                total = total + 2 * self._placed(both, a, b)
        return total.flatten(1).index_select(1, self.answers)

    def _marginal(self, field: Tensor, *kept: int) -> Tensor:
        others = [1 + axis for axis in range(len(self.shape)) if axis not in kept]
        return field.sum(others) if others else field

    def _placed(self, values: Tensor, *axes: int) -> Tensor:
        """Reshape values over some axes to broadcast over the others."""
        return values.view(-1, *(size if axis in axes else 1 for axis, size in enumerate(self.shape)))
