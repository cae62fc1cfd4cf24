"""Sparse graphs over nodes: distances from some nodes by Dijkstra's algorithm, and components."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy.sparse.csgraph import connected_components, dijkstra

#: A symmetric ``scipy.sparse.csr_array``, whose stubs hide what it has.
Graph: TypeAlias = Any


def distances_from(graph: Graph, sources: np.ndarray) -> np.ndarray:
    """Return the distances from some nodes to all nodes, float64 of shape (sources, nodes).

    Args:
        graph: symmetric, connected, with positive weights.
        sources: nodes, int64.
    """
    if len(sources) == 0:
        return np.zeros((0, graph.shape[0]))
    return np.atleast_2d(dijkstra(graph, directed=False, indices=sources))


def components(graph: Graph) -> tuple[int, np.ndarray]:
    """Return how many components a graph has, and the component of every node."""
    return connected_components(graph, directed=False)
