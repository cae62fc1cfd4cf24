"""From the root of a tree down to the node of least expected cost, for many rows at once.

Costs are convex along paths, so that at most one child is better than its parent, and it holds more than half: of F1
(for squared distances), or of the mass (for distances). A binary search among the children by prefix sums finds it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weightspace.labels.rules.rule import Rule
from weightspace.labels.rules.tree_sums import Sums
from weightspace.labels.rules.two_core import Fringe


class Descent(Rule):
    """Descends by tables of a peeled graph; ``exponent`` is 1 or 2, ``rank`` the observed labels before a position."""

    height: Tensor
    length: Tensor
    before: Tensor
    after: Tensor
    first: Tensor
    child: Tensor
    child_after: Tensor

    def __init__(self, fringe: Fringe, rank: np.ndarray, exponent: int) -> None:
        super().__init__()
        self.exponent = exponent
        self.depth = int(fringe.depth.max())
        self.halvings = int(np.diff(fringe.first).max(initial=0)).bit_length()
        self.table("height", fringe.height)
        self.table("length", fringe.length)
        self.table("before", rank)
        self.table("after", rank[fringe.last + 1])  # the whole subtree
        self.table("first", fringe.first)
        children = np.append(fringe.children, 0)  # one more, to look at where there is none
        self.table("child", children)
        self.table("child_after", rank[fringe.last[children] + 1])

    def forward(self, sums: Sums, start: Tensor, first: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where every row ends, what its cost has changed by, and whether another node costs the same.

        Args:
            sums: of the weights of B rows.
            start: position where every row begins, int64 (B,).
            first: expected distance there, F1, float64 (B,).
            total: sum of the weights, float64 (B,).
        """
        at, gained = start.clone(), torch.zeros_like(first)
        tied = torch.zeros_like(at, dtype=torch.bool)
        live = torch.arange(len(start), device=start.device)  # rows that still move; what follows is of these
        here, gain = start, gained.clone()
        for _ in range(self.depth):
            below = _Below(self, sums, live, self.height[here])
            half = (first if self.exponent == 2 else total) / 2
            child, exists = below.candidate(here, half, strict=False)
            step, drop = below.step(child, first, total)
            ties, moves = exists & (step == 0), exists & (step < 0)
            if self.exponent == 1:
                other, also = below.candidate(here, half, strict=True)
                ties |= also & ~moves & (below.step(other, first, total)[0] == 0)
            at[live], gained[live], tied[live] = here, gain, ties
            moving = moves.nonzero()[:, 0]
            if not len(moving):
                break
            here, first, gain = (values[moving] for values in (child, first + drop, gain + step))
            live, total = live[moving], total[moving]
        else:
            at[live], gained[live], tied[live] = here, gain, False
        return at, gained, tied


class _Below:
    """What lies below the nodes at which some rows stand."""

    def __init__(self, tables: Descent, sums: Sums, row: Tensor, height: Tensor) -> None:
        self.tables, self.sums, self.row, self.height = tables, sums, row, height

    def candidate(self, here: Tensor, half: Tensor, *, strict: bool) -> tuple[Tensor, Tensor]:
        """Return the child in which the sum over the children's subtrees reaches a half, and whether there is one."""
        tables = self.tables
        low, stop = tables.first[here], tables.first[here + 1]
        high, origin = stop, None
        for _ in range(tables.halvings):
            middle = (low + high) >> 1
            rank = tables.child_after.index_select(0, middle)
            if origin is None:
                origin, reached = (pair[tables.exponent - 1] for pair in self._of(tables.before[here + 1], rank))
            else:
                reached = self._of(rank)[0][tables.exponent - 1]
            reached = reached - origin
            enough = (reached > half if strict else reached >= half) | (low >= high)
            low = torch.where(enough, low, middle + 1)
            high = torch.where(enough & (low < high), middle, high)
        return tables.child[low], low < stop

    def step(self, child: Tensor, first: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the cost and F1 change by on the way to a child."""
        length = self.tables.length[child]
        (mass, moment), (mass_before, moment_before) = self._of(self.tables.after[child], self.tables.before[child])
        drop = length * (total - 2 * (mass - mass_before))
        if self.tables.exponent == 1:
            return drop, drop
        return length * (2 * first + length * total - 4 * (moment - moment_before)), drop

    def _of(self, *ranks: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mass and moment of the first weights of every row: for one rank a row or two, looked up at once."""
        if len(ranks) == 1:
            return [self.sums.before(self.row, ranks[0], self.height)]
        rank, row, height = (torch.cat(parts) for parts in (ranks, [self.row] * 2, [self.height] * 2))
        mass, moment = self.sums.before(row, rank, height)
        return list(zip(mass.chunk(2), moment.chunk(2), strict=True))
