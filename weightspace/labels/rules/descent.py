"""From the root of a tree down to the node of least expected cost, for many rows at once.

Costs are convex along paths, so that at most one child is better than its parent, and it holds more than half: of F1 (for
squared distances), or of the mass (for distances). A binary search among the children by prefix sums finds it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weightspace.labels.fringe import Fringe
from weightspace.labels.rules.rule import Rule


class Descent(Rule):
    """Descends by tables of a peeled graph; ``exponent`` is 1 or 2."""

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
        self, mass: Tensor, moment: Tensor, start: Tensor, first: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return where every row ends, what its cost has changed by, and whether another node costs the same.

        Args:
            mass: prefix sums of the weights in preorder, float64 (B, nodes).
            moment: prefix sums of the weights times heights, float64 (B, nodes).
            start: position where every row begins, int64 (B,).
            first: expected distance there, F1, float64 (B,).
            total: sum of the weights, float64 (B,).
        """
        nodes = mass.shape[1]
        row = torch.arange(len(mass), device=mass.device) * nodes
        at, first, gained = start.clone(), first.clone(), torch.zeros_like(first)
        tied = torch.zeros_like(at, dtype=torch.bool)
        live = torch.arange(len(mass), device=mass.device)  # rows that still move
        mass, moment = mass.view(-1), moment.view(-1)
        for _ in range(self.depth):
            here, base, f1, p = at[live], row[live], first[live], total[live]
            half = (f1 if self.exponent == 2 else p) / 2
            child, exists = self._candidate(mass, moment, here, base, half, strict=False)
            step, drop = self._step(mass, moment, child, base, here, f1, p)
            tied[live] |= exists & (step == 0)
            if self.exponent == 1:
                other, also = self._candidate(mass, moment, here, base, half, strict=True)
                tied[live] |= also & (self._step(mass, moment, other, base, here, f1, p)[0] == 0)
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
        self, mass: Tensor, moment: Tensor, here: Tensor, base: Tensor, half: Tensor, *, strict: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the child in which the sum over the children's subtrees reaches a half, and whether there is one."""
        low, stop = self.first[here], self.first[here + 1]
        high, end = stop, len(self.child) - 1
        origin = mass[base + here]
        if self.exponent == 2:
            height = self.height[here]
            origin = moment[base + here] - height * origin
        for _ in range(self.halvings):
            middle = (low + high) // 2
            place = base + self.child_last[middle.clamp(max=end)]
            reached = mass[place]
            if self.exponent == 2:
                reached = moment[place] - height * reached
            reached = reached - origin
            enough = (reached > half if strict else reached >= half) | (low >= high)
            low = torch.where(enough, low, middle + 1)
            high = torch.where(enough & (low < high), middle, high)
        return self.child[low.clamp(max=end)], low < stop

    def _step(
        self, mass: Tensor, moment: Tensor, child: Tensor, base: Tensor, here: Tensor, first: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the cost and F1 change by on the way to a child."""
        length = self.length[child]
        stop, before = base + self.last[child], base + child - 1
        below = mass[stop] - mass[before]
        drop = length * (total - 2 * below)
        if self.exponent == 1:
            return drop, drop
        inner = moment[stop] - moment[before] - self.height[here] * below
        return length * (2 * first + length * total - 4 * inner), drop


