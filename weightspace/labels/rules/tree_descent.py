"""Descent from the root of a tree to the node of least expected cost, for many rows at once.

Costs are convex along paths, so at most one child is better than its parent, and its subtree holds more than half of F1
(for squared distances) or of the mass (for distances). A binary search among the children finds it by float64 prefix
sums of the weights in preorder: for all positions or, which is faster, for the starts of blocks. The remainder within a
block is summed on request, as a descent requests few positions.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from weightspace.labels.rules.rule import Rule
from weightspace.labels.rules.two_core import PeeledGraph

#: A block of 2^SHIFT weights has one sum; _PIECE weights, or one row if longer, are processed at once to fit the cache.
SHIFT, _PIECE = 5, 2**18
BLOCK = 1 << SHIFT


class Sums(Protocol):
    """Prefix sums of the weights of many rows, (B, observed)."""

    def before(self, row: Tensor, rank: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mass of the first ``rank`` weights and their moment about a height, float64 (n,)."""
        ...


class AllSums:
    """Prefix sums for all ranks: ``mass`` and ``moment``, float64 (B, observed + 1)."""

    def __init__(self, mass: Tensor, moment: Tensor) -> None:
        self.mass, self.moment = mass, moment

    def before(self, row: Tensor, rank: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Sums`."""
        mass = self.mass[row, rank]
        return mass, self.moment[row, rank] - height * mass


class Blocks(Rule):
    """Blocks of the observed labels in preorder: their columns and heights, (blocks, BLOCK); the last block is padded.

    Row n of ``first`` is 1 for the first n entries of a block and 0 for the others.
    """

    columns: Tensor
    heights: Tensor
    first: Tensor

    def __init__(self, columns: Tensor, heights: Tensor) -> None:
        super().__init__()
        self.observed = len(columns)
        room = BLOCK * (self.observed // BLOCK + 1) - self.observed
        self.table("columns", pad(columns.int(), (0, room)).view(-1, BLOCK))
        self.table("heights", pad(heights, (0, room)).view(-1, BLOCK))
        self.table("first", torch.ones(BLOCK, BLOCK, dtype=torch.float64).tril(-1))

    def sums(self, weights: Tensor) -> BlockSums:
        """Return the prefix sums of weights, (B, observed)."""
        return BlockSums(self, weights)


class BlockSums:
    """Prefix sums at the starts of blocks: ``mass`` and ``moment``, float64 (B, blocks + 1)."""

    def __init__(self, blocks: Blocks, weights: Tensor) -> None:
        self.blocks, self.weights = blocks, weights.reshape(-1)
        self.mass = weights.new_zeros(len(weights), len(blocks.columns) + 1, dtype=torch.float64)
        self.moment = torch.zeros_like(self.mass)
        rows = max(1, _PIECE // blocks.columns.numel())
        placed = self.mass.new_empty(rows, *blocks.columns.shape)
        for start in range(0, len(weights), rows):
            self._sum_up(weights[start : start + rows], slice(start, start + rows), placed)
        self.mass.cumsum_(1)
        self.moment.cumsum_(1)

    def _sum_up(self, weights: Tensor, rows: slice, placed: Tensor) -> None:
        """Sum the blocks of some rows."""
        columns = self.blocks.columns.view(-1)
        # A single row is gathered as a vector, which torch does faster.
        found = weights[0].index_select(0, columns)[None] if len(weights) == 1 else weights.index_select(1, columns)
        placed = placed[: len(found)].copy_(found.view(-1, *self.blocks.columns.shape))
        placed[:, -1, self.blocks.observed % BLOCK :] = 0
        torch.sum(placed, -1, out=self.mass[rows, 1:])
        torch.sum(placed.mul_(self.blocks.heights), -1, out=self.moment[rows, 1:])

    def before(self, row: Tensor, rank: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Sums`."""
        block = rank >> SHIFT
        place = (row * self.blocks.observed).unsqueeze(1) + self.blocks.columns.index_select(0, block)
        weights = self.weights.index_select(0, place.view(-1)).view(place.shape).double()
        weights *= self.blocks.first.index_select(0, rank & BLOCK - 1)
        start = row * self.mass.shape[1] + block
        mass = self.mass.take(start) + weights.sum(1)
        weights *= self.blocks.heights.index_select(0, block)
        return mass, self.moment.take(start) + weights.sum(1) - height * mass


class Descent(Rule):
    """Descent by tables of a peeled graph; ``exponent`` is 1 or 2, ``rank`` counts the observed before a position."""

    height: Tensor
    length: Tensor
    before: Tensor
    after: Tensor
    first: Tensor
    child: Tensor
    child_after: Tensor

    def __init__(self, peeled: PeeledGraph, rank: np.ndarray, exponent: int) -> None:
        super().__init__()
        self.exponent = exponent
        self.depth = int(peeled.depth.max())
        self.halvings = int(np.diff(peeled.first).max(initial=0)).bit_length()
        self.table("height", peeled.height)
        self.table("length", peeled.length)
        self.table("before", rank)
        self.table("after", rank[peeled.last + 1])  # the whole subtree
        self.table("first", peeled.first)
        children = np.append(peeled.children, 0)  # padding, read when a node has no child
        self.table("child", children)
        self.table("child_after", rank[peeled.last[children] + 1])

    def forward(self, sums: Sums, start: Tensor, first: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the final position of each row, the change of its cost, and whether another node costs the same.

        Args:
            sums: prefix sums of the weights of B rows.
            start: initial position of each row, int64 (B,).
            first: expected distance F1 at the start, float64 (B,).
            total: sum of the weights, float64 (B,).
        """
        at, gained = start.clone(), torch.zeros_like(first)
        tied = torch.zeros_like(at, dtype=torch.bool)
        live = torch.arange(
            len(start), device=start.device
        )  # rows still moving, to which the following variables refer
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
    """Sums over the subtrees below the current nodes of some rows."""

    def __init__(self, tables: Descent, sums: Sums, row: Tensor, height: Tensor) -> None:
        self.tables, self.sums, self.row, self.height = tables, sums, row, height

    def candidate(self, here: Tensor, half: Tensor, *, strict: bool) -> tuple[Tensor, Tensor]:
        """Return the child in which the sum over the children's subtrees reaches ``half``, and whether it exists."""
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
        """Return the changes of the cost and of F1 from a node to a child."""
        length = self.tables.length[child]
        (mass, moment), (mass_before, moment_before) = self._of(self.tables.after[child], self.tables.before[child])
        drop = length * (total - 2 * (mass - mass_before))
        if self.tables.exponent == 1:
            return drop, drop
        return length * (2 * first + length * total - 4 * (moment - moment_before)), drop

    def _of(self, *ranks: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mass and moment of each row's first weights, for one rank per row or for two, looked up together."""
        if len(ranks) == 1:
            return [self.sums.before(self.row, ranks[0], self.height)]
        rank, row, height = (torch.cat(parts) for parts in (ranks, [self.row] * 2, [self.height] * 2))
        mass, moment = self.sums.before(row, rank, height)
        return list(zip(mass.chunk(2), moment.chunk(2), strict=True))
