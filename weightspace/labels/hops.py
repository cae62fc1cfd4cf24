"""Distances from some nodes of a sparse graph to all others: by hops with bits, by weights with Dijkstra."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from scipy.sparse.csgraph import connected_components, dijkstra

#: A symmetric ``scipy.sparse.csr_array``, whose stubs hide what it has.
Graph: TypeAlias = Any

#: Sources whose distances are sought at once, so that the memory of a call is bounded.
SOURCES = 512


def distances_from(graph: Graph, sources: np.ndarray) -> np.ndarray:
    """Return the distances from some nodes to all nodes, float64 of shape (sources, nodes).

    Args:
        graph: symmetric, connected, with positive weights.
        sources: nodes, int64.
    """
    if len(sources) == 0:
        return np.zeros((0, graph.shape[0]))
    if graph.nnz and (graph.data == graph.data[0]).all():
        found = np.empty((len(sources), graph.shape[0]))
        for start in range(0, len(sources), SOURCES):
            found[start : start + SOURCES] = _hops(graph, sources[start : start + SOURCES])
        return found * graph.data[0]
    return np.atleast_2d(dijkstra(graph, directed=False, indices=sources))


def components(graph: Graph) -> tuple[int, np.ndarray]:
    """Return how many components a graph has, and the component of every node."""
    return connected_components(graph, directed=False)


def _hops(graph: Graph, sources: np.ndarray) -> np.ndarray:
    """Return hops by breadth-first search from all sources at once, a bit for each; int32 (sources, nodes)."""
    nodes, bits = graph.shape[0], -(-len(sources) // 64) * 64
    hops = np.zeros((nodes, bits), dtype=np.int32)
    front = np.zeros((nodes, bits), dtype=bool)
    front[sources, np.arange(len(sources))] = True
    words = np.packbits(front, axis=1).view(np.uint64)
    seen = words.copy()
    starts = graph.indptr[:-1]
    has_neighbours = np.diff(graph.indptr) > 0
    level = 0
    while words.any():
        reached = np.zeros_like(words)
        gathered = words[graph.indices]
        reached[has_neighbours] = np.bitwise_or.reduceat(gathered, starts[has_neighbours], axis=0)
        words = reached & ~seen
        seen |= words
        level += 1
        rows = np.flatnonzero(words.any(axis=1))
        fresh = np.unpackbits(words[rows].view(np.uint8), axis=1)
        hops[rows] += fresh.astype(np.int32) * level
    return hops[:, : len(sources)].T
