"""Covers: as few classes as possible to observe so that every label can be predicted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import DiscreteGeometry, GraphGeometry, PointGeometry
from weightspace.labels.label_space import LabelSpace
from weightspace.labels.locus import all_nodes, equal_pair, is_mean, squared_distances, whole_tree

#: Largest numbers of labels and of candidate sets for an exhaustive search.
_SEARCHED, _SETS = 16, 20_000
#: Largest number of labels for reverse deletion.
_DELETED = 100
#: Largest dimension for a convex hull; beyond it, there are too many facets.
_FLAT = 8


@dataclass(frozen=True)
class Cover:
    """Classes from which every label can be predicted.

    Attributes:
        labels: names, in order of position.
        method: ``leaves`` (of a tree), ``all labels`` (discrete), ``search``, or an approximation: ``reverse deletion``
            (none of its labels can be removed) and, for larger spaces, ``leaves and core`` (of a graph), ``convex
            hull`` (its vertices, for points in up to 8 dimensions) or ``all labels``.
        lower_bound: no cover is smaller than this.
        identifying: whether every label is the unique mean for some weights, not just one of several.
    """

    labels: tuple[Any, ...]
    method: str
    lower_bound: int
    identifying: bool

    @property
    def exact(self) -> bool:
        """Whether the cover is known to be the smallest."""
        return len(self.labels) == self.lower_bound


def minimum_cover(metric: LabelSpace, *, identifying: bool = False) -> list[Any]:
    """Return the labels of :func:`find_cover`, with a warning where it may not be the smallest."""
    cover = find_cover(metric, identifying=identifying)
    if not cover.exact:
        warnings.warn(
            f"The cover of {len(cover.labels):,} labels was found by {cover.method} and may not be the smallest; none "
            f"has fewer than {cover.lower_bound:,}.",
            UserWarning,
            stacklevel=3,
        )
    return list(cover.labels)


def find_cover(metric: LabelSpace, *, identifying: bool = False) -> Cover:
    """Return a smallest cover if one can be found, otherwise a small one, with a lower bound.

    If all nodes of a tree are labels, its leaves are the unique smallest cover. Every cover contains the labels that no
    weights of all the others predict; their number is the bound. For large spaces, the bound is the number of leaves of
    a graph, or 2, as one class predicts only labels equal to it.

    Raises:
        WeightspaceError: ``identifying`` is set and two labels are at distance zero.
    """
    if identifying and (pair := equal_pair(metric)):
        first, second = (metric.labels[i] for i in pair)
        raise WeightspaceError(
            f"No classes identify every label: {first!r} and {second!r} are at distance 0, so neither can be the "
            "unique mean. Remove one of them, or use identifying=False."
        )

    def cover(positions: Any, method: str, bound: int) -> Cover:
        return Cover(tuple(metric.labels[i] for i in sorted(positions)), method, bound, identifying)

    count = len(metric)
    if isinstance(metric.geometry, DiscreteGeometry):
        return cover(range(count), "all labels", count)
    if whole_tree(metric):
        leaves = _leaves(metric)
        return cover(leaves, "leaves", len(leaves))
    if count > _DELETED:
        return cover(*_approximate(metric))
    squares = squared_distances(metric, np.arange(count))
    everything = tuple(range(count))
    forced = [i for i in everything if not _covers(squares, _without(everything, i), identifying, only=i)]
    for found in _sets(count, forced):
        if _covers(squares, found, identifying):
            return cover(found, "search", len(found))
    left = everything
    for label in everything:
        if label not in forced and _covers(squares, _without(left, label), identifying):
            left = _without(left, label)
    return cover(left, "reverse deletion", max(1, len(forced)))


def _sets(count: int, forced: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield the sets that contain the forced labels, smallest first; nothing if there are too many."""
    free = [i for i in range(count) if i not in forced]
    if count > _SEARCHED and sum(comb(len(free), size) for size in range(len(free) + 1)) > _SETS:
        return
    for size in range(len(free) + 1):
        for more in combinations(free, size):
            if forced or more:
                yield (*forced, *more)


def _covers(squares: np.ndarray, observed: tuple[int, ...], identifying: bool, only: int | None = None) -> bool:
    """Return whether all labels, or just ``only``, are in the locus of the observed ones."""
    if not observed:
        return False
    inside = set() if identifying else set(observed)
    wanted = [i for i in range(len(squares)) if i not in inside] if only is None else [only]
    columns = squares[:, sorted(observed)]
    return all(is_mean(columns, label, unique=identifying) for label in wanted)


def _without(labels: tuple[int, ...], one: int) -> tuple[int, ...]:
    return tuple(label for label in labels if label != one)


def _leaves(metric: LabelSpace) -> np.ndarray:
    assert isinstance(metric.geometry, GraphGeometry)
    return np.flatnonzero(np.diff(metric.geometry.graph.indptr) <= 1)


def _approximate(metric: LabelSpace) -> tuple[Any, str, int]:
    """Return a cover of many labels, the name of the method, and the lower bound."""
    geometry = metric.geometry
    if isinstance(geometry, GraphGeometry) and all_nodes(metric):
        # The pendant trees lie on the paths between leaves and core.
        leaves = _leaves(metric)
        core = geometry.peeled.order[geometry.peeled.roots]
        return {*leaves.tolist(), *core.tolist()}, "leaves and core", max(1, len(leaves))
    bound = 2 if bool((geometry.distances(metric.nodes[:1], metric.nodes) > 0).any()) else 1
    if isinstance(geometry, PointGeometry) and geometry.points.shape[1] <= _FLAT:
        points = geometry.points[torch.from_numpy(metric.nodes)].double().numpy()
        with suppress(QhullError):  # degenerate: the points lie in a hyperplane
            return _corners(points), "convex hull", bound
    return range(len(metric)), "all labels", bound


def _corners(points: np.ndarray) -> list[int]:
    """Return the hull's vertices, of which every point is a weighted mean and hence has the least cost."""
    if points.shape[1] == 1:
        return sorted({int(points.argmin()), int(points.argmax())})
    return ConvexHull(points).vertices.tolist()
