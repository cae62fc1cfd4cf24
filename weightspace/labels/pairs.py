"""Distances between two lists of labels: pair by pair in bounded memory, or all pairs as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import (
    DiscreteGeometry,
    Geometry,
    GraphGeometry,
    GridGeometry,
    MatrixGeometry,
    PointGeometry,
)
from weightspace.labels.names import Label
from weightspace.labels.path_lengths import pair_lengths
from weightspace.reprs import size

if TYPE_CHECKING:
    from weightspace.labels.label_space import LabelSpace

#: Number of labels whose distances to all are computed at once, and of pairs of points subtracted at once.
_SOURCES, _PAIRS = 256, 1 << 14

#: Largest table, in bytes, of the distances from all labels where no sources are named.
_LARGEST = 1 << 30


def distance_table(metric: LabelSpace, sources: Sequence[Label] | None, targets: Sequence[Label] | None) -> np.ndarray:
    """Return the distances from sources to targets, float64 (sources, targets).

    Args:
        metric: the labels.
        sources: names, which may repeat; None for all labels, if the table takes at most 1 GiB.
        targets: names, which may repeat; None for all labels.

    Raises:
        WeightspaceError: a name is unknown, or the table from all labels is too large.
    """
    goals = metric.nodes if targets is None else metric.nodes[metric.names.positions_of(targets, "targets")]
    if sources is None:
        if (needed := 8 * len(metric) * len(goals)) > _LARGEST:
            raise WeightspaceError(
                f"The distances from all {len(metric):,} labels take {size(needed)}; expected at most "
                f"{size(_LARGEST)}. Name the sources, a part at a time."
            )
        places, where = np.unique(metric.nodes, return_inverse=True)
    else:
        places, where = np.unique(metric.nodes[metric.names.positions_of(sources, "sources")], return_inverse=True)
    return metric.geometry.distances(places, goals)[where]


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
        return pair_lengths(geometry.peeled, first, second)
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
