"""Sums of the first weights in preorder, in float64: for all positions, or for the starts of blocks, which is faster.

What a position lies beyond the start of its block is added up when it is asked for; a descent asks for few.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from weightspace.labels.rules.rule import Rule

#: A block has 2^SHIFT weights and one sum; so many weights, or one row, are taken at a time and stay in the cache.
SHIFT, _PIECE = 5, 2**18
BLOCK = 1 << SHIFT


class Sums(Protocol):
    """Sums of weights of many rows, (B, observed)."""

    def before(self, row: Tensor, rank: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mass of the first ``rank`` weights, and their moment about a height; all int64 or float64 (n,)."""
        ...


class AllSums:
    """Sums that were found for every rank: ``mass`` and ``moment``, float64 (B, observed + 1)."""

    def __init__(self, mass: Tensor, moment: Tensor) -> None:
        self.mass, self.moment = mass, moment

    def before(self, row: Tensor, rank: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Sums`."""
        mass = self.mass[row, rank]
        return mass, self.moment[row, rank] - height * mass


class Blocks(Rule):
    """Blocks of the observed labels in preorder: their columns and heights, (blocks, BLOCK); the last one is padded.

    Row n of ``first`` is 1 for the first n of a block, and 0 for the others.
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
        """Return the sums of weights, (B, observed)."""
        return BlockSums(self, weights)


class BlockSums:
    """Sums that are kept for the starts of blocks: ``mass`` and ``moment``, float64 (B, blocks + 1)."""

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
        """Sum up the blocks of some rows."""
        columns = self.blocks.columns.view(-1)
        # The same of one row, which torch gathers faster as a vector.
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
