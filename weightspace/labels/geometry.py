"""Structures that distances between labels come from; each knows its distances and the rule that decides fastest.

Labels are positions here. ``distances`` are asked for from a few labels at a time, never between all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.path_lengths import path_lengths
from weightspace.labels.rules.powers import check_points
from weightspace.labels.rules.shortest_paths import Graph, distances_from
from weightspace.labels.rules.two_core import Fringe, peel

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.labels.rules.rule import Rule


#: How many distances of a table take a row as long as a descent, a node in a descent, and a node whose costs are all
#: summed up.
_DESCENT, _DESCENDED, _SUMMED = 200_000, 100, 2000
#: Products of two coordinates up to which points are subtracted one by one, and points that are multiplied at once.
_SUBTRACTED, _BLOCK = 1 << 28, 4096
#: Share of the largest coordinate below which two points are near to each other.
_NEAR = 2.0**-20
#: Sources whose distances to all nodes are held at once.
_SOURCES = 128
#: Sources below which a graph is not peeled for their distances alone, which takes as long as they do.
_FEW = 64


class Geometry(Protocol):
    """What a label metric stands on."""

    kind: ClassVar[str]

    @property
    def nodes(self) -> int:
        """How many labels there are."""
        ...

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """Return the distances from some labels to others, or to all, float64 (sources, targets)."""
        ...

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """Return what decides among ``outputs`` under weights of ``observed``."""
        ...

    def arrays(self) -> Mapping[str, Any]:
        """Return what the structure is made of, for a file."""
        ...


@dataclass(frozen=True)
class GraphGeometry:
    """Shortest paths on a connected symmetric graph with positive lengths; trees and what hangs from a core go fast."""

    graph: Graph
    kind: ClassVar[str] = "graph"

    @property
    def nodes(self) -> int:
        """See :class:`Geometry`."""
        return self.graph.shape[0]

    @property
    def is_tree(self) -> bool:
        """Whether there is one path between any two labels."""
        return self.graph.nnz == 2 * (self.nodes - 1)

    @cached_property
    def fringe(self) -> Fringe:
        """The graph, peeled down to its core."""
        return peel(self.graph)

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Geometry`."""
        if targets is not None and len(targets) < len(sources):
            return self.distances(targets, sources).T
        peels = self.is_tree or len(sources) >= _FEW or "fringe" in self.__dict__
        if peels and len(self.fringe.roots) < self.nodes:
            return path_lengths(self.fringe, sources, targets)
        if targets is None or len(sources) == 0:
            return distances_from(self.graph, sources)[:, slice(None) if targets is None else targets]
        blocks = range(0, len(sources), _SOURCES)
        return np.concatenate([distances_from(self.graph, sources[at : at + _SOURCES])[:, targets] for at in blocks])

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.chunked import KEPT, columns
        from weightspace.labels.rules.tree import HangingTrees

        if exponent in (1, 2):
            fringe = self.fringe
            anchors = len(np.unique(fringe.tree[fringe.position[observed]]))
            core = 0 if len(fringe.roots) == 1 else anchors * len(fringe.roots)
            distances = len(observed) * len(outputs)
            of_nodes = _DESCENT + _DESCENDED * self.nodes if _all(outputs, self.nodes) else _SUMMED * self.nodes
            tabulated = 8 * distances <= KEPT and distances <= of_nodes + core
            if not tabulated and 4 * core <= KEPT:
                return HangingTrees(
                    fringe, lambda sources: distances_from(fringe.core, sources), observed, outputs, int(exponent)
                )
        return columns(self.distances, observed, outputs, exponent)

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        entries = self.graph.tocoo()
        u, v = entries.coords
        once = u < v
        return {"ends": np.stack([u[once], v[once]]).astype(np.int64), "lengths": entries.data[once]}


@dataclass(frozen=True)
class MatrixGeometry:
    """A matrix of distances, float32 or float64 (nodes, nodes), the caller's own memory."""

    matrix: Tensor
    kind: ClassVar[str] = "matrix"

    @property
    def nodes(self) -> int:
        """See :class:`Geometry`."""
        return len(self.matrix)

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Geometry`."""
        rows = self.matrix[sources]
        return (rows if targets is None else rows[:, targets]).double().numpy()

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.dense import Dense

        rows = self.matrix if _all(outputs, self.nodes) else self.matrix[outputs]
        return Dense(rows if _all(observed, self.nodes) else rows[:, observed].contiguous(), exponent)

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"matrix": self.matrix}


@dataclass(frozen=True)
class PointGeometry:
    """Euclidean distances between points, float32 or float64 (nodes, d), finite."""

    points: Tensor
    kind: ClassVar[str] = "points"

    @property
    def nodes(self) -> int:
        """See :class:`Geometry`."""
        return len(self.points)

    @cached_property
    def checked(self) -> Tensor:
        """The points, whose squared distances float64 can hold.

        Raises:
            WeightspaceError: it cannot.
        """
        return check_points(self.points)

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Geometry`."""
        import torch

        here, others = self.checked[sources].double(), self.points if targets is None else self.points[targets]
        if here.numel() * len(others) <= _SUBTRACTED:
            return torch.cdist(here, others.double(), compute_mode="donot_use_mm_for_euclid_dist").numpy()
        return torch.cat([self._by_products(here, block.double()) for block in others.split(_BLOCK)], 1).numpy()

    def _by_products(self, here: Tensor, there: Tensor) -> Tensor:
        """Return distances by products of matrices, and those of points near to each other by subtraction."""
        from weightspace.labels.rules.slices import Slicing

        largest = float(self.points.abs().max())
        squares = Slicing.of(largest, self.points.shape[1]).squared_distances(here, there)
        rows, columns = (squares < (_NEAR * largest) ** 2).nonzero(as_tuple=True)
        for at in range(0, len(rows), _BLOCK):
            row, column = rows[at : at + _BLOCK], columns[at : at + _BLOCK]
            squares[row, column] = (here[row] - there[column]).square().sum(1)
        return squares.sqrt()

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.chunked import columns
        from weightspace.labels.rules.euclidean import Nearest

        if exponent != 2:
            return columns(self.distances, observed, outputs, exponent)
        named = self.checked if _all(outputs, self.nodes) else self.points[outputs]
        return Nearest(named, self.points if _all(observed, self.nodes) else self.points[observed])

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"points": self.points}


@dataclass(frozen=True)
class DiscreteGeometry:
    """A distance of one between any two labels."""

    nodes: int
    kind: ClassVar[str] = "discrete"

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Geometry`."""
        others = np.arange(self.nodes) if targets is None else np.asarray(targets)
        return (np.asarray(sources)[:, None] != others).astype(np.float64)

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.discrete import MostProbable

        return MostProbable(self.nodes, observed, outputs)

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"nodes": np.asarray([self.nodes])}


def grid_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of a grid.

    Raises:
        WeightspaceError: there are none, or one is below 1.
    """
    sizes = tuple(int(size) for size in shape)
    if not sizes or min(sizes) < 1:
        raise WeightspaceError(f"A grid has sizes of one or more; found {tuple(shape)}.")
    return sizes


@dataclass(frozen=True)
class GridGeometry:
    """Sums of the differences of coordinates on a grid; the last axis varies fastest."""

    shape: tuple[int, ...]
    kind: ClassVar[str] = "grid"

    @property
    def nodes(self) -> int:
        """See :class:`Geometry`."""
        return prod(self.shape)

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Geometry`."""
        others = np.arange(self.nodes) if targets is None else np.asarray(targets)
        found = np.zeros((len(sources), len(others)))
        for here, there in zip(
            np.unravel_index(sources, self.shape), np.unravel_index(others, self.shape), strict=True
        ):
            found += np.abs(here[:, None] - there)
        return found

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.chunked import columns
        from weightspace.labels.rules.grid import OnGrid

        if exponent in (1, 2):
            return OnGrid(self.shape, observed, outputs, int(exponent))
        return columns(self.distances, observed, outputs, exponent)

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"shape": np.asarray(self.shape)}


def _all(positions: np.ndarray, nodes: int) -> bool:
    return len(positions) == nodes and bool((positions == np.arange(nodes)).all())
