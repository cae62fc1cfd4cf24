"""Distances between two lists of labels, pair by pair, in bounded memory."""

from __future__ import annotations

import numpy as np

from weightspace.labels.geometry import DiscreteGeometry, Geometry, GraphGeometry

#: Labels whose distances to all are sought at once.
_SOURCES = 256


def pair_distances(geometry: Geometry, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distances between nodes of equal index, float64 (n,)."""
    if isinstance(geometry, DiscreteGeometry):
        return (first != second).astype(np.float64)
    if isinstance(geometry, GraphGeometry) and geometry.is_tree:
        return _on_tree(geometry, first, second)
    if len(np.unique(first)) < len(np.unique(second)):
        first, second = second, first
    sources, which = np.unique(second, return_inverse=True)
    found = np.empty(len(first))
    for start in range(0, len(sources), _SOURCES):
        rows = geometry.distances(sources[start : start + _SOURCES])
        here = np.flatnonzero((which >= start) & (which < start + _SOURCES))
        found[here] = rows[which[here] - start, first[here]]
    return found


def _on_tree(geometry: GraphGeometry, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return distances by climbing from the deeper of two positions until both are one."""
    fringe = geometry.fringe
    a, b = fringe.position[first], fringe.position[second]
    found = fringe.height[a] + fringe.height[b]
    apart = a != b
    while apart.any():
        climbs = fringe.depth[a] >= fringe.depth[b]
        a, b = np.where(apart & climbs, fringe.parent[a], a), np.where(apart & ~climbs, fringe.parent[b], b)
        apart = a != b
    return found - 2 * fringe.height[a]
