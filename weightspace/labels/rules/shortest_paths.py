"""Sparse graphs: distances by Dijkstra's algorithm, and connected components."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy.sparse.csgraph import connected_components, dijkstra

#: A symmetric ``scipy.sparse.csr_array``, whose type stubs are incomplete.
Graph: TypeAlias = Any


def distances_from(graph: Graph, sources: np.ndarray) -> np.ndarray:
    """Return the distances from the sources to all nodes, float64 of shape (sources, nodes).

    Args:
        graph: symmetric, connected, with positive weights.
        sources: source nodes, int64.
    """
    if len(sources) == 0:
        return np.zeros((0, graph.shape[0]))
    return np.atleast_2d(dijkstra(graph, directed=False, indices=sources))


def components(graph: Graph) -> tuple[int, np.ndarray]:
    """Return the number of connected components of a graph, and the component of each node."""
    return connected_components(graph, directed=False)
