"""From the root of a tree down to the node of least expected cost, for many rows at once.

Costs are convex along paths, so that at most one child is better than its parent, and it holds more than half: of F1
(for squared distances), or of the mass (for distances). A binary search among the children by prefix sums finds it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weightspace.labels.fringe import Fringe
from weightspace.labels.rules.rule import Rule


class Descent(Rule):
    """Descends by tables of a peeled graph; ``exponent`` is 1 or 2."""

    height: Tensor
    length: Tensor
    last: Tensor
    first: Tensor
    child: Tensor
    child_last: Tensor

    def __init__(self, fringe: Fringe, exponent: int) -> None:
        super().__init__()
        self.exponent = exponent
        self.depth = int(fringe.depth.max())
        self.halvings = int(np.diff(fringe.first).max(initial=0)).bit_length()
        self.table("height", fringe.height)
        self.table("length", fringe.length)
        self.table("last", fringe.last)
        self.table("first", fringe.first)
        children = fringe.children if len(fringe.children) else np.zeros(1, dtype=np.int64)
        self.table("child", children)
        self.table("child_last", fringe.last[children])

    def forward(
        self, mass: Tensor, moment: Tensor, rank: Tensor, start: Tensor, first: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return where every row ends, what its cost has changed by, and whether another node costs the same.

        Args:
            mass: sums of the first 0, 1, … weights in preorder, float64 (B, observed + 1).
            moment: the same of weights times heights.
            rank: how many observed labels are before a position, int64 (nodes + 1,).
            start: position where every row begins, int64 (B,).
            first: expected distance there, F1, float64 (B,).
            total: sum of the weights, float64 (B,).
        """
        sums = _Sums(mass, moment, rank)
        at, first, gained = start.clone(), first.clone(), torch.zeros_like(first)
        tied = torch.zeros_like(at, dtype=torch.bool)
        live = torch.arange(len(mass), device=mass.device)  # rows that still move
        for _ in range(self.depth):
            here, f1, p = at[live], first[live], total[live]
            half = (f1 if self.exponent == 2 else p) / 2
            child, exists = self._candidate(sums, here, live, half, strict=False)
            step, drop = self._step(sums, child, here, live, f1, p)
            tied[live] |= exists & (step == 0)
            if self.exponent == 1:
                other, also = self._candidate(sums, here, live, half, strict=True)
                tied[live] |= also & (self._step(sums, other, here, live, f1, p)[0] == 0)
            moves = exists & (step < 0)
            if not bool(moves.any()):
                break
            live, child = live[moves], child[moves]
            at[live] = child
            first[live] = f1[moves] + drop[moves]
            gained[live] += step[moves]
            tied[live] = False
        return at, gained, tied

    def _candidate(
        self, sums: _Sums, here: Tensor, row: Tensor, half: Tensor, *, strict: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the child in which the sum over the children's subtrees reaches a half, and whether there is one."""
        low, stop = self.first[here], self.first[here + 1]
        high, end = stop, len(self.child) - 1
        height = self.height[here] if self.exponent == 2 else None
        origin = sums.before(row, here + 1, height)
        for _ in range(self.halvings):
            middle = (low + high) // 2
            reached = sums.before(row, self.child_last[middle.clamp(max=end)] + 1, height) - origin
            enough = (reached > half if strict else reached >= half) | (low >= high)
            low = torch.where(enough, low, middle + 1)
            high = torch.where(enough & (low < high), middle, high)
        return self.child[low.clamp(max=end)], low < stop

    def _step(
        self, sums: _Sums, child: Tensor, here: Tensor, row: Tensor, first: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the cost and F1 change by on the way to a child."""
        length, stop = self.length[child], self.last[child] + 1
        below = sums.before(row, stop) - sums.before(row, child)
        drop = length * (total - 2 * below)
        if self.exponent == 1:
            return drop, drop
        height = self.height[here]
        inner = sums.before(row, stop, height) - sums.before(row, child, height)
        return length * (2 * first + length * total - 4 * inner), drop


class _Sums:
    """Prefix sums that are looked up by row and position."""

    def __init__(self, mass: Tensor, moment: Tensor, rank: Tensor) -> None:
        self.mass, self.moment, self.rank = mass, moment, rank

    def before(self, row: Tensor, position: Tensor, height: Tensor | None = None) -> Tensor:
        """Return the mass before a position, or its moment about a height."""
        rank = self.rank[position]
        if height is None:
            return self.mass[row, rank]
        return self.moment[row, rank] - height * self.mass[row, rank]
