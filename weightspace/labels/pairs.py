"""Distances between two lists of labels, pair by pair, in bounded memory."""

from __future__ import annotations

import numpy as np

from weightspace.labels.geometry import (
    DiscreteGeometry,
    Geometry,
    GraphGeometry,
    GridGeometry,
    MatrixGeometry,
    PointGeometry,
)
from weightspace.labels.path_lengths import pair_lengths

#: Number of labels whose distances to all are computed at once, and of pairs of points subtracted at once.
_SOURCES, _PAIRS = 256, 1 << 14


def pair_distances(geometry: Geometry, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distance of each pair of nodes at the same index, float64 (n,)."""
    if isinstance(geometry, DiscreteGeometry):
        return (first != second).astype(np.float64)
    if isinstance(geometry, GridGeometry):
        places = zip(*(np.unravel_index(side, geometry.shape) for side in (first, second)), strict=True)
        return np.stack([np.abs(here - there) for here, there in places]).sum(0, dtype=np.float64)
    if isinstance(geometry, MatrixGeometry):
        return geometry.matrix[first, second].double().numpy()
    if isinstance(geometry, PointGeometry):
        blocks = [slice(start, start + _PAIRS) for start in range(0, len(first), _PAIRS)]
        points = geometry.checked
        apart = [(points[first[at]].double() - points[second[at]].double()).norm(dim=1).numpy() for at in blocks]
        return np.concatenate(apart) if apart else np.zeros(0)
    if isinstance(geometry, GraphGeometry) and geometry.is_tree:
        return pair_lengths(geometry.fringe, first, second)
    return _by_sources(geometry, first, second)


def _by_sources(geometry: Geometry, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return pair distances from rows of distances, for the side with fewer distinct nodes."""
    if len(np.unique(first)) < len(np.unique(second)):
        first, second = second, first
    sources, which = np.unique(second, return_inverse=True)
    found = np.empty(len(first))
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(0, len(sources) + _SOURCES, _SOURCES))
    for start, stop, source in zip(bounds, bounds[1:], range(0, len(sources), _SOURCES), strict=False):
        here = order[start:stop]
        rows = geometry.distances(sources[source : source + _SOURCES])
        found[here] = rows[which[here] - source, first[here]]
    return found
