"""Structures that distances between labels come from; each knows its distances and the rule that decides fastest.

Labels are positions here. ``distances`` are asked for from a few labels at a time, never between all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from weightspace.labels.fringe import Fringe, peel
from weightspace.labels.hops import Graph, distances_from

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.labels.rules.rule import Rule


class Geometry(Protocol):
    """What a label metric stands on."""

    kind: ClassVar[str]

    @property
    def nodes(self) -> int:
        """How many labels there are."""
        ...

    def distances(self, sources: np.ndarray) -> np.ndarray:
        """Return the distances from some labels to all, float64 (sources, nodes)."""
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
        """Whether there is one way between any two labels."""
        return self.graph.nnz == 2 * (self.nodes - 1)

    @cached_property
    def fringe(self) -> Fringe:
        """The graph, peeled down to its core."""
        return peel(self.graph)

    def distances(self, sources: np.ndarray) -> np.ndarray:
        """See :class:`Geometry`."""
        return distances_from(self.graph, sources)

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.columns import KEPT, columns
        from weightspace.labels.rules.hanging import HangingTrees

        if exponent in (1, 2):
            fringe = self.fringe
            anchors = len(np.unique(fringe.tree[fringe.position[observed]]))
            if len(fringe.roots) == 1 or 4 * anchors * len(fringe.roots) <= KEPT:
                core = lambda sources: distances_from(fringe.core, sources)  # noqa: E731
                return HangingTrees(fringe, core, observed, outputs, int(exponent))
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

    def distances(self, sources: np.ndarray) -> np.ndarray:
        """See :class:`Geometry`."""
        return self.matrix[sources].double().numpy()

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

    def distances(self, sources: np.ndarray) -> np.ndarray:
        """See :class:`Geometry`."""
        import torch

        points = self.points.double()
        mode = "use_mm_for_euclid_dist" if len(sources) * points.numel() > 1 << 28 else "donot_use_mm_for_euclid_dist"
        return torch.cdist(points[sources], points, compute_mode=mode).numpy()

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.columns import columns
        from weightspace.labels.rules.nearest import Nearest

        if exponent != 2:
            return columns(self.distances, observed, outputs, exponent)
        named = self.points if _all(outputs, self.nodes) else self.points[outputs]
        return Nearest(named, self.points if _all(observed, self.nodes) else self.points[observed])

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"points": self.points}


@dataclass(frozen=True)
class DiscreteGeometry:
    """A distance of one between any two labels."""

    nodes: int
    kind: ClassVar[str] = "discrete"

    def distances(self, sources: np.ndarray) -> np.ndarray:
        """See :class:`Geometry`."""
        return (np.asarray(sources)[:, None] != np.arange(self.nodes)).astype(np.float64)

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.discrete import MostProbable

        return MostProbable(self.nodes, observed, outputs)

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"nodes": np.asarray([self.nodes])}


@dataclass(frozen=True)
class GridGeometry:
    """Sums of the differences of coordinates on a grid; the last axis varies fastest."""

    shape: tuple[int, ...]
    kind: ClassVar[str] = "grid"

    @property
    def nodes(self) -> int:
        """See :class:`Geometry`."""
        return prod(self.shape)

    def distances(self, sources: np.ndarray) -> np.ndarray:
        """See :class:`Geometry`."""
        places = np.stack(np.unravel_index(np.arange(self.nodes), self.shape), axis=1)
        here = places[sources]
        return sum(
            np.abs(here[:, None, axis] - places[None, :, axis]).astype(np.float64) for axis in range(len(self.shape))
        )  # type: ignore[return-value]

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """See :class:`Geometry`."""
        from weightspace.labels.rules.columns import columns
        from weightspace.labels.rules.grid import OnGrid

        if exponent in (1, 2):
            return OnGrid(self.shape, observed, outputs, int(exponent))
        return columns(self.distances, observed, outputs, exponent)

    def arrays(self) -> Mapping[str, Any]:
        """See :class:`Geometry`."""
        return {"shape": np.asarray(self.shape)}


def _all(positions: np.ndarray, nodes: int) -> bool:
    return len(positions) == nodes and bool((positions == np.arange(nodes)).all())
