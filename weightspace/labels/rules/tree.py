"""Rules for trees and for 2-cores with pendant trees: exact in O(nodes) per row, plus O(core × anchors) for the core.

In preorder, mass and moment of a subtree are differences of two prefix sums, of w and of w·h (h: distance to the root
of the tree). With P = Σw, and for a node c at distance ℓ below its parent, A0 = mass of the subtree of c, and
g = Σ w d(·, parent) over it:  F1(c) = F1(parent) + ℓ(P − 2 A0),  F2(c) = F2(parent) + 2ℓ F1(parent) + ℓ²P − 4ℓ g.

Costs of the core: F2(v) = Σ D(v,a)² S0(a) + 2 D(v,a) S1(a) + S2(a), with the moments S of the tree of each anchor a.

Source:
    Roberts et al. 2023, https://arxiv.org/abs/2307.12226, for the rule; the sums are derived from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weightspace.labels.rules.dense import least_of
from weightspace.labels.rules.powers import check_range
from weightspace.labels.rules.rule import TILE, Distances, Rule, in_tiles, uses_full_float32
from weightspace.labels.rules.tree_descent import BLOCK, AllSums, Blocks, Descent
from weightspace.labels.rules.two_core import PeeledGraph

#: Largest depth for a descent; in deeper trees, all costs are computed.
_DEEPEST = 256
#: Float64 numbers of prefix sums held at once (28 MB, which malloc can reuse without mapping new pages), or those of
#: at least this many rows.
_SCRATCH, _ROWS = 7 << 19, 16
#: Number of weights of a row summed at once.
_PIECE = 8192
#: Number of rows of the core's distances multiplied at once.
_BLOCK = 512


class PendantTrees(Rule):
    """Expected distances (exponent 1) or squared distances (2) on a graph peeled to its core."""

    source: Tensor
    present: Tensor
    height: Tensor
    answers: Tensor
    node: Tensor
    sorted_columns: Tensor
    heights: Tensor
    rank: Tensor
    last: Tensor
    parent: Tensor
    length: Tensor
    depth: Tensor
    postorder: Tensor
    closed: Tensor
    some_closed: Tensor
    tree: Tensor
    roots: Tensor
    ends: Tensor
    anchors: Tensor
    between: Tensor

    def __init__(
        self, peeled: PeeledGraph, core_distances: Distances, observed: np.ndarray, outputs: np.ndarray, exponent: int
    ) -> None:
        super().__init__()
        nodes = len(peeled.order)
        position = peeled.position
        self.nodes, self.outputs, self.exponent, self.width = nodes, len(outputs), exponent, 4 * nodes
        self.observed = len(observed)
        self.whole = len(outputs) == nodes and bool((outputs == np.arange(nodes)).all())
        self.shallow = bool(peeled.depth.max() <= _DEEPEST)
        source = np.zeros(nodes, dtype=np.int64)
        present = np.zeros(nodes)
        source[position[observed]], present[position[observed]] = np.arange(len(observed)), 1.0
        self.full = bool(present.all())
        self.table("source", source)
        self.table("present", present)
        sorted_columns = np.argsort(position[observed], kind="stable")
        places = position[observed][sorted_columns]
        self.sorted = bool((sorted_columns == np.arange(len(observed))).all())
        self.table("sorted_columns", sorted_columns)
        self.table("heights", peeled.height[places])
        self.table("rank", np.searchsorted(places, np.arange(nodes + 1)))  # observed labels before a position
        self.table("height", peeled.height)
        self.table("answers", position[outputs])
        self.table("node", peeled.order)
        self._keep_subtrees(peeled)
        self._keep_core(peeled, core_distances, np.unique(peeled.tree[position[observed]]))
        farthest = 2 * peeled.height.max() + (0 if self.single else float(self.between.max()))
        check_range(np.concatenate([peeled.length, peeled.core.data, [farthest]]), exponent)
        self.descent = Descent(peeled, self.rank.numpy(), exponent) if self.shallow else None
        self.blocks = Blocks(self.sorted_columns, self.heights) if self.single else None

    def _keep_subtrees(self, peeled: PeeledGraph) -> None:
        here = np.arange(self.nodes)
        postorder = np.lexsort((-here, peeled.last))
        closed = here - peeled.depth  # subtrees that end before a position: all begun except its ancestors
        self.table("last", peeled.last)
        self.table("parent", peeled.parent)
        self.table("length", peeled.length)
        self.table("depth", peeled.depth)
        self.positive = bool((peeled.length[peeled.depth > 0] > 0).all())
        self.table("postorder", postorder)
        self.table("closed", np.maximum(closed - 1, 0))
        self.table("some_closed", (closed > 0).astype(np.float64))
        self.table("tree", peeled.tree)
        self.table("roots", peeled.roots)
        self.table("ends", peeled.last[peeled.roots])

    def _keep_core(self, peeled: PeeledGraph, core_distances: Distances, anchors: np.ndarray) -> None:
        self.core = len(peeled.roots)
        self.single = self.core == 1
        if self.single:
            return
        table = np.empty((len(peeled.roots), len(anchors)), dtype=np.float32)
        for start in range(0, len(anchors), _BLOCK):
            found = core_distances(anchors[start : start + _BLOCK]).T  # (core, anchors)
            if table.dtype == np.float32 and ((found != np.rint(found)).any() or found.max() >= 1 << 24):
                table = table.astype(np.float64)
            table[:, start : start + _BLOCK] = found
        self.table("anchors", anchors)
        self.table("between", table)

    def spread(self, weights: Tensor) -> Tensor:
        """Return weights in preorder, float64 of shape (B, nodes)."""
        placed = weights.index_select(1, self.source).double()
        return placed if self.full else placed * self.present

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        first, second, step = self._steps(weights)
        if self.exponent == 1:
            return first.index_select(1, self.answers)
        return (second.index_select(1, self.tree) + self._along_paths(step)).index_select(1, self.answers)

    def scores(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`; for squares on a whole tree, the negated depth of nodes better than their parents.

        These form the path from the root to the best node, and a tie can only be one further child. Unlike the costs,
        steps don't cancel if lengths differ in magnitude.
        """
        if not (self.single and self.whole and self.exponent == 2 and self.positive):
            return self.costs(weights)
        step = self._steps(weights)[2]
        better = torch.where(step < 0, -self.depth, torch.where(step == 0, 1 - self.depth, 1))
        return torch.where(self.depth == 0, 0, better).index_select(1, self.answers)

    def _steps(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return F1 of all positions, F2 of the core, and the excess of each position's F2 over its parent's."""
        w = self.spread(weights)
        mass, moment = w.cumsum(1), (w * self.height).cumsum(1)
        total = mass[:, -1:]
        first, second = self.core_costs(w, mass, moment)
        below = mass.index_select(1, self.last) - mass + w
        first = first.index_select(1, self.tree) + self._along_paths(self.length * (total - 2 * below))
        if self.exponent == 1:
            return first, second, first
        inner = moment.index_select(1, self.last) - moment + w * self.height
        above = inner - (self.height - self.length) * below
        return first, second, self.length * (2 * first.index_select(1, self.parent) + self.length * total - 4 * above)

    def _along_paths(self, steps: Tensor) -> Tensor:
        """Return the sum of the steps from the root to each position: over all begun subtrees minus the closed ones."""
        closed = steps.index_select(1, self.postorder).cumsum(1).index_select(1, self.closed)
        return steps.cumsum(1) - closed * self.some_closed

    def core_costs(self, w: Tensor, mass: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Return F1 and F2 of each node of the core, float64 (B, core), from weights and prefix sums in preorder."""
        square = (w @ (self.height * self.height)).unsqueeze(1)
        if self.single:
            return moment[:, -1:], square
        mass, moment = self._of_trees(w, mass), self._of_trees(w * self.height, moment)
        return self._core(mass.index_select(1, self.anchors), moment.index_select(1, self.anchors), square)

    def _core(self, mass: Tensor, moment: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Return F1 and F2 of the core from the moments of the anchors' trees, (B, anchors), and Σ w h²."""
        offset = moment.sum(1, keepdim=True)
        first, second = [], []
        for start in range(0, self.core, _BLOCK):
            block = self.between[start : start + _BLOCK].double().T
            first.append(mass @ block + offset)
            if self.exponent == 2:
                second.append(mass @ (block * block) + 2 * (moment @ block) + square)
        return torch.cat(first, 1), torch.cat(second, 1) if second else square

    def _of_trees(self, values: Tensor, sums: Tensor) -> Tensor:
        """Return the sums over whole trees."""
        starts = sums.index_select(1, self.roots) - values.index_select(1, self.roots)
        return sums.index_select(1, self.ends) - starts

    def decide_now(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`: descend from the root, or from the core node that has more than half of F1 below it."""
        descends = self.descent is not None and self.whole
        if not descends or not (self.single or (self.exponent == 2 and uses_full_float32(weights.device))):
            return super().decide_now(weights)
        with torch.no_grad():
            found = self._descend_tree(weights) if self.single else self._descend_core(weights)
        again = (found < 0).nonzero()[:, 0]  # ties, which are rare: compute all costs to find the lowest index
        if len(again):
            found[again] = in_tiles(lambda some: self.costs(some).argmin(-1), weights[again], self.tile)
        return found

    def _sum_up(self, weights: Tensor, mass: Tensor, moment: Tensor) -> None:
        """Write prefix sums of weights and of weights times heights, in pieces that fit in the cache."""
        placed = weights if self.sorted else weights.index_select(1, self.sorted_columns)
        for start in range(0, self.observed, _PIECE):
            stop = min(self.observed, start + _PIECE)
            w, moments = mass[:, start + 1 : stop + 1], moment[:, start + 1 : stop + 1]
            w.copy_(placed[:, start:stop])
            torch.mul(w, self.heights[start:stop], out=moments)
            if start:
                w[:, 0] += mass[:, start]
                moments[:, 0] += moment[:, start]
            w.cumsum_(1)
            moments.cumsum_(1)

    def _descend_tree(self, weights: Tensor) -> Tensor:
        """Return the labels of all rows on a tree, -1 if neighbours tie."""

        def decide(rows: Tensor) -> Tensor:
            assert self.descent is not None
            assert self.blocks is not None
            sums = self.blocks.sums(rows)
            root = self.roots.expand(len(rows))
            end, _, tied = self.descent(sums, root, sums.moment[:, -1], sums.mass[:, -1])
            return torch.where(tied, -1, self.node[end])

        return in_tiles(decide, weights, max(1, TILE * BLOCK // (2 * self.observed)))

    def _descend_core(self, weights: Tensor) -> Tensor:
        """Return the labels of all rows on a graph with a core, -1 if neighbours tie."""
        rows = min(len(weights), max(_ROWS, _SCRATCH // (2 * self.observed + 2)))
        scratch = torch.empty(2, rows, self.observed + 1, dtype=torch.float64, device=weights.device)
        scratch[:, :, 0] = 0
        return in_tiles(lambda some: self._descend(some, scratch[:, : len(some)]), weights, rows)

    def _descend(self, weights: Tensor, scratch: Tensor) -> Tensor:
        """Return the labels of some rows, -1 if neighbours tie; prefix sums go to ``scratch``."""
        assert self.descent is not None
        mass, moment = scratch
        self._sum_up(weights, mass, moment)
        total = mass[:, -1]
        starts, stops = self.rank[self.roots[self.anchors]], self.rank[self.ends[self.anchors] + 1]
        masses, moments = (sums.index_select(1, stops) - sums.index_select(1, starts) for sums in scratch)
        w = weights.index_select(1, self.sorted_columns).double()
        sums = masses, moments, w @ (self.heights * self.heights)
        best = self._best_of_core(*sums)
        heaviest = self.anchors[moments.argmax(1)]  # only this one can have more than half of its F1 below it
        first, _ = self._at(*sums, heaviest)
        branch = torch.where(moments.amax(1) > first / 2, heaviest, best)
        least, (first, below) = self._at(*sums, best)[1], self._at(*sums, branch)
        start = self.roots[branch]
        end, gained, tied = self.descent(AllSums(mass, moment), start, first, total)
        below = below + gained
        found, other = self.node[end], self.node[self.roots[best]]
        found = torch.where((least < below) | ((least == below) & (other < found)), other, found)
        return torch.where(tied, -1, found)

    def _at(self, mass: Tensor, moment: Tensor, square: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return F1 and F2 of one node of the core per row, float64 (B,)."""
        apart = self.between[nodes].double()
        once = (mass * apart).sum(1)
        return once + moment.sum(1), ((mass * apart + 2 * moment) * apart).sum(1) + square

    def _best_of_core(self, mass: Tensor, moment: Tensor, square: Tensor) -> Tensor:
        """Return the core node of least F2, ties going to the lowest: screened in float32, decided in float64.

        All terms are non-negative, so rounding changes a cost by a relative amount.
        """
        total = mass.sum(1, keepdim=True)
        shares, moments, rest = (part.float() for part in (mass / total, 2 * moment / total, square[:, None] / total))
        seen = torch.empty(len(mass), self.core, dtype=torch.float32, device=mass.device)
        for start in range(0, self.core, _BLOCK):
            block = self.between[start : start + _BLOCK].float().T
            seen[:, start : start + _BLOCK] = shares @ (block * block) + moments @ block + rest
        margin = 4 * 2.0**-24 * (2 * mass.shape[1] + 8)
        beyond = ~seen.isfinite()  # overflow in float32: indistinguishable here
        least = seen.masked_fill(beyond, torch.inf).amin(1, keepdim=True)
        near = (seen <= least * (1 + margin)) | beyond
        rows, nodes = near.nonzero(as_tuple=True)
        costs = torch.empty(len(rows), dtype=torch.float64, device=mass.device)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            row = rows[part]
            costs[part] = self._at(mass[row], moment[row], square[row], nodes[part])[1]
        return least_of(costs, rows, nodes, len(mass))
