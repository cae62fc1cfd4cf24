"""Geometries of label spaces; each provides its distances and its fastest decision rule.

Labels are positions here. ``distances`` are computed for a few labels at a time, never between all.
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
from weightspace.labels.rules.two_core import PeeledGraph, peel

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.labels.rules.rule import Rule


#: Cost per row, in table entries, of a descent, of a node in a descent, and of a node when all costs are summed.
_DESCENT, _DESCENDED, _SUMMED = 200_000, 100, 2000
#: Largest number of coordinate pairs for direct subtraction, and number of points multiplied at a time beyond it.
_SUBTRACTED, _BLOCK = 1 << 28, 4096
#: Distance, as a fraction of the largest coordinate, below which two points are near each other.
_NEAR = 2.0**-20
#: Sources whose distances to all nodes are held at once.
_SOURCES = 128
#: Number of sources below which peeling a graph takes as long as computing their distances directly.
_FEW = 64


class Geometry(Protocol):
    """The structure that the distances of a label metric come from."""

    kind: ClassVar[str]

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        ...

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """Return the distances from sources to targets (all nodes if None), float64 (sources, targets)."""
        ...

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """Return the rule that decides among ``outputs`` given weights of ``observed``."""
        ...

    def arrays(self) -> Mapping[str, Any]:
        """Return the arrays that define the structure, for a file."""
        ...


@dataclass(frozen=True)
class GraphGeometry:
    """Shortest paths on a connected symmetric graph with positive lengths; fast for trees and for pendant trees."""

    graph: Graph
    kind: ClassVar[str] = "graph"

    @property
    def nodes(self) -> int:
        """See :class:`Geometry`."""
        return self.graph.shape[0]

    @property
    def is_tree(self) -> bool:
        """Whether there is exactly one path between any two nodes."""
        return self.graph.nnz == 2 * (self.nodes - 1)

    @cached_property
    def peeled(self) -> PeeledGraph:
        """The pendant trees and the 2-core of the graph."""
        return peel(self.graph)

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """See :class:`Geometry`."""
        if targets is not None and len(targets) < len(sources):
            return self.distances(targets, sources).T
        peels = self.is_tree or len(sources) >= _FEW or "peeled" in self.__dict__
        if peels and len(self.peeled.roots) < self.nodes:
            return path_lengths(self.peeled, sources, targets)
        if targets is None or len(sources) == 0:
            return distances_from(self.graph, sources)[:, slice(None) if targets is None else targets]
        blocks = range(0, len(sources), _SOURCES)
        return np.concatenate([distances_from(self.graph, sources[at : at + _SOURCES])[:, targets] for at in blocks])

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.chunked import KEPT, columns
        from weightspace.labels.rules.tree import PendantTrees

        if exponent in (1, 2):
            peeled = self.peeled
            anchors = len(np.unique(peeled.tree[peeled.position[observed]]))
            core = 0 if len(peeled.roots) == 1 else anchors * len(peeled.roots)
            distances = len(observed) * len(outputs)
            of_nodes = _DESCENT + _DESCENDED * self.nodes if _all(outputs, self.nodes) else _SUMMED * self.nodes
            tabulated = 8 * distances <= KEPT and distances <= of_nodes + core
            if not tabulated and 4 * core <= KEPT:
                return PendantTrees(
                    peeled, lambda sources: distances_from(peeled.core, sources), observed, outputs, int(exponent)
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
    """A distance matrix, float32 or float64 (nodes, nodes), in the caller's memory."""

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
        """The points, once their squared distances are known to fit in float64.

        Raises:
            WeightspaceError: they don't fit.
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
        """Return distances by matrix products, and by subtraction for points near each other."""
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
        WeightspaceError: the shape is empty, or a size is below 1.
    """
    sizes = tuple(int(size) for size in shape)
    if not sizes or min(sizes) < 1:
        raise WeightspaceError(f"The sizes of a grid must be at least 1; found {tuple(shape)}.")
    return sizes


@dataclass(frozen=True)
class GridGeometry:
    """Manhattan distances on a grid; the last axis varies fastest."""

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
