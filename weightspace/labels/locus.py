"""The locus of observed classes: every label that is a Fréchet mean under some weights of them.

On a tree, the union of the ways between observed labels. In general a linear program a label, exact: y belongs to it
iff max t ≥ 0 subject to Σ w_i (d²(y, i) − d²(z, i)) + t ≤ 0 for all z ≠ y, w on the simplex, and is the only mean for
some w iff max t > 0. The locus of many classes is more than the union over pairs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linprog

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import DiscreteGeometry, GraphGeometry
from weightspace.labels.hops import Graph
from weightspace.labels.names import Label
from weightspace.labels.space import LabelSpace

#: Labels of a space without a shortcut, at most: there is a linear program for each.
LARGEST = 2_000
#: Share of the largest squared distance by which rounding may miss zero.
_TOLERANCE = 1e-9
#: Labels that a program begins with, and that are added where they are violated.
_FIRST, _MORE = 64, 16


def locus(metric: LabelSpace, observed: Sequence[Label], *, unique: bool = False) -> list[Any]:
    """Return the labels that are a Fréchet mean (exponent 2) under some weights; see :meth:`LabelMetric.locus`.

    Source:
        Roberts et al. 2023, https://arxiv.org/abs/2307.12226, section 3, for the notion; the linear program is
        written down from its definition.
    """
    seen = metric.names.positions(observed, "observed classes")
    if len(seen) == 0:
        raise WeightspaceError("There are no observed classes; expected at least one.")
    return [metric.labels[i] for i in np.flatnonzero(in_locus(metric, seen, unique=unique))]


def in_locus(metric: LabelSpace, seen: np.ndarray, *, unique: bool = False) -> np.ndarray:
    """Return which labels are in the locus of some positions, bool (labels,)."""
    if whole_tree(metric):
        assert isinstance(metric.geometry, GraphGeometry)
        return on_ways(metric.geometry.graph, seen)
    inside = np.zeros(len(metric), dtype=bool)
    if isinstance(metric.geometry, DiscreteGeometry):
        inside[seen] = True
        return inside
    squares = squared_distances(metric, seen)
    for label in range(len(metric)):
        inside[label] = is_mean(squares, label, unique=unique)
    return inside


def whole_tree(metric: LabelSpace) -> bool:
    """Return whether the labels are all nodes of a tree."""
    geometry = metric.geometry
    return isinstance(geometry, GraphGeometry) and geometry.is_tree and len(metric) == geometry.nodes


def squared_distances(metric: LabelSpace, seen: np.ndarray) -> np.ndarray:
    """Return d² of all labels to some, float64 (labels, seen).

    Raises:
        WeightspaceError: there are too many labels.
    """
    if len(metric) > LARGEST:
        raise WeightspaceError(
            f"Loci need a linear program for each of the {len(metric):,} labels; expected {LARGEST:,} at most, a tree, "
            "or a discrete metric."
        )
    return np.square(metric.geometry.distances(metric.nodes[seen])[:, metric.nodes]).T


def is_mean(squares: np.ndarray, label: int, *, unique: bool) -> bool:
    """Return whether a label is a mean, or the only one, under some weights of the columns.

    Args:
        squares: d² (labels, observed).
        label: a row of it.
        unique: whether it must be the only one.
    """
    largest = float(squares.max(initial=0))
    if largest == 0:
        return not unique or len(squares) == 1
    excess = (squares[label] - squares) / largest  # cost of the label, less that of the others
    others = np.arange(len(squares)) != label
    rows = np.flatnonzero(others)
    if len(rows) == 0:
        return True
    chosen = rows[np.argsort(-excess[rows].min(axis=1), kind="stable")[:_FIRST]]
    while True:
        margin, weights = _best_margin(excess[chosen])
        if margin < -_TOLERANCE or (unique and margin <= _TOLERANCE):
            return False  # more rows only lower it
        worst = excess @ weights
        violated = rows[worst[rows] > -margin + _TOLERANCE / 2]
        violated = np.setdiff1d(violated, chosen)
        if len(violated) == 0:
            return True
        chosen = np.concatenate([chosen, violated[np.argsort(-worst[violated], kind="stable")[:_MORE]]])


def _best_margin(excess: np.ndarray) -> tuple[float, np.ndarray]:
    """Return max t with excess·w + t ≤ 0 on the simplex, and its w."""
    rows, columns = excess.shape
    found = linprog(
        np.concatenate([np.zeros(columns), [-1.0]]),
        A_ub=np.hstack([excess, np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.concatenate([np.ones(columns), [0.0]])[None],
        b_eq=[1.0],
        bounds=[(0, None)] * columns + [(None, None)],
        method="highs",
    )
    if found.status != 0:
        raise WeightspaceError(f"The linear program of the locus wasn't solved: {found.message}")
    return float(found.x[-1]), np.asarray(found.x[:-1])


def on_ways(tree: Graph, seen: np.ndarray) -> np.ndarray:
    """Return which nodes of a tree lie on a way between some nodes: what is left when other leaves are cut."""
    nodes = tree.shape[0]
    degree = np.diff(tree.indptr).tolist()
    indptr, indices = tree.indptr.tolist(), tree.indices.tolist()
    left = [True] * nodes
    kept = np.zeros(nodes, dtype=bool)
    kept[seen] = True
    cut = [node for node in range(nodes) if degree[node] <= 1 and not kept[node]]
    for node in cut:
        left[node] = False
        for other in indices[indptr[node] : indptr[node + 1]]:
            degree[other] -= 1
            if degree[other] == 1 and left[other] and not kept[other]:
                cut.append(other)
    return np.asarray(left)
