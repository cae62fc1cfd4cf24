"""The locus of observed classes: all labels that are a Fréchet mean under some weights of them.

On a tree, it is the union of the paths between observed labels. In general, it takes a linear program per label: y
belongs to it iff max t ≥ 0 subject to Σ w_i (d²(y, i) − d²(z, i)) + t ≤ 0 for all z ≠ y, w on the simplex, and is the
unique mean for some w iff max t > 0. Both are invariant to positive scaling of rows (one per z) and columns, so the
program is scaled to keep distant labels from masking small differences. The locus of many classes is larger than the
union over pairs of them. Labels at distance zero from each other are never a unique mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import DiscreteGeometry, GraphGeometry, MatrixGeometry, PointGeometry
from weightspace.labels.label_space import LabelSpace
from weightspace.labels.names import Label
from weightspace.labels.rules.powers import check_range
from weightspace.labels.rules.shortest_paths import Graph, components

#: Largest number of labels if there is a linear program for each.
LARGEST = 2_000
#: Tolerance for zero in a scaled program.
_TOLERANCE = 1e-9
#: Relative rounding error of a squared distance.
_ROUNDING = 2.0**-44
#: Rounds of scaling, and options of the solver.
_ROUNDS = 8
_EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
#: Number of constraints that a program starts with, and number of violated ones added per round.
_FIRST, _MORE = 64, 16


def locus(metric: LabelSpace, observed: Sequence[Label], *, unique: bool = False) -> list[Any]:
    """Return the labels that are a Fréchet mean (exponent 2) under some weights; see :meth:`LabelMetric.locus`.

    Source:
        Roberts et al. 2023, https://arxiv.org/abs/2307.12226, section 3, for the concept; the linear program follows
        from the definition.
    """
    seen = metric.names.positions(observed, "observed classes")
    if len(seen) == 0:
        raise WeightspaceError("There are no observed classes; expected at least one.")
    return [metric.labels[i] for i in np.flatnonzero(in_locus(metric, seen, unique=unique))]


def in_locus(metric: LabelSpace, seen: np.ndarray, *, unique: bool = False) -> np.ndarray:
    """Return a mask of the labels in the locus of the given positions, bool (labels,)."""
    if whole_tree(metric):
        assert isinstance(metric.geometry, GraphGeometry)
        inside = on_paths(metric.geometry.graph, seen)
        if unique:
            groups = groups_of_equals(metric)
            inside &= np.bincount(groups)[groups] == 1
        return inside
    inside = np.zeros(len(metric), dtype=bool)
    if isinstance(metric.geometry, DiscreteGeometry):
        inside[seen] = True
        return inside
    squares = squared_distances(metric, seen)
    for label in range(len(metric)):
        inside[label] = is_mean(squares, label, unique=unique)
    return inside


def whole_tree(metric: LabelSpace) -> bool:
    """Return whether the labels are all the nodes of a tree."""
    geometry = metric.geometry
    return isinstance(geometry, GraphGeometry) and geometry.is_tree and all_nodes(metric)


def all_nodes(metric: LabelSpace) -> bool:
    """Return whether the labels are the nodes of the geometry, each once and in order."""
    return np.array_equal(metric.nodes, np.arange(metric.geometry.nodes))


def squared_distances(metric: LabelSpace, seen: np.ndarray) -> np.ndarray:
    """Return d² from all labels to the observed ones, float64 (labels, seen).

    Raises:
        WeightspaceError: there are too many labels.
    """
    if len(metric) > LARGEST:
        raise WeightspaceError(
            f"A locus takes a linear program for each of the {len(metric):,} labels; expected at most {LARGEST:,}, a "
            "tree, or a discrete metric."
        )
    distances = metric.geometry.distances(metric.nodes, metric.nodes[seen])
    check_range(distances, 2)
    return np.square(distances)


def is_mean(squares: np.ndarray, label: int, *, unique: bool) -> bool:
    """Return whether a label is a mean, or the unique mean, under some weights of the columns.

    Args:
        squares: d², (labels, observed).
        label: row index of the label.
        unique: whether it must be the unique mean.
    """
    if (np.delete(squares, label, axis=0) > squares[label]).all(axis=0).any():
        return True  # all weight on one class suffices, e.g. if the label itself is observed
    excess = _scaled_excess(squares, label)
    if len(excess) < len(squares) - 1 and unique:
        return False  # another label costs the same under all weights
    if len(excess) == 0:
        return True
    chosen = np.argsort(-excess.min(axis=1), kind="stable")[:_FIRST]
    while True:
        weights = _best_weights(excess[chosen])
        margin = -float((excess[chosen] @ weights).max())
        if margin < -_TOLERANCE or (unique and margin <= _TOLERANCE):
            return False  # more rows can only lower the margin
        worst = excess @ weights
        violated = np.setdiff1d(np.flatnonzero(worst > -margin + _TOLERANCE / 2), chosen)
        if len(violated) == 0:
            return True
        chosen = np.concatenate([chosen, violated[np.argsort(-worst[violated], kind="stable")[:_MORE]]])


def _scaled_excess(squares: np.ndarray, label: int) -> np.ndarray:
    """Return the excess cost of a label over the others, one column per class given all the weight, scaled to ≤ 1.

    Labels of equal cost are omitted. Rows and columns are alternately divided by the geometric mean of their smallest
    and largest entries.
    """
    others = np.delete(squares, label, axis=0)
    excess = squares[label] - others
    excess[np.abs(excess) <= _ROUNDING * np.maximum(others, squares[label])] = 0
    excess = excess[excess.any(axis=1)]
    for _ in range(_ROUNDS):
        for axis in (0, 1):
            sizes = np.abs(excess)
            smallest = np.where(sizes > 0, sizes, np.inf).min(axis=axis, keepdims=True, initial=np.inf)
            largest = sizes.max(axis=axis, keepdims=True, initial=0)
            smallest, largest = (np.where(largest > 0, size, 1) for size in (smallest, largest))
            excess = excess / (np.sqrt(smallest) * np.sqrt(largest))
    return excess / np.abs(excess).max(axis=1, keepdims=True, initial=0)


def _best_weights(excess: np.ndarray) -> np.ndarray:
    """Return the w on the simplex that minimises max(excess·w)."""
    rows, columns = excess.shape
    found = linprog(
        np.concatenate([np.zeros(columns), [-1.0]]),
        A_ub=np.hstack([excess, np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.concatenate([np.ones(columns), [0.0]])[None],
        b_eq=[1.0],
        bounds=[(0, None)] * columns + [(None, None)],
        method="highs",
        options=_EXACT,
    )
    if found.status != 0:
        raise WeightspaceError(f"The linear program of the locus could not be solved: {found.message}")
    weights = np.maximum(found.x[:-1], 0)
    return weights / weights.sum()


def on_paths(tree: Graph, seen: np.ndarray) -> np.ndarray:
    """Return a mask of the tree's nodes on paths between the given nodes, by repeatedly pruning other leaves."""
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


def groups_of_equals(metric: LabelSpace) -> np.ndarray:
    """Return group indices of the labels, int64 (labels,); labels at distance zero share one."""
    geometry = metric.geometry
    groups = np.arange(geometry.nodes)
    if isinstance(geometry, GraphGeometry) and (geometry.graph.data == 0).any():
        edges = geometry.graph.tocoo()
        groups = _joined(geometry.nodes, *(side[edges.data == 0] for side in edges.coords))
    elif isinstance(geometry, MatrixGeometry):
        groups = _joined(geometry.nodes, *(side.numpy() for side in (geometry.matrix == 0).nonzero(as_tuple=True)))
    elif isinstance(geometry, PointGeometry):
        _, groups = np.unique(geometry.points.numpy() + 0.0, axis=0, return_inverse=True)  # -0.0 is 0.0
    return groups.reshape(-1)[metric.nodes]


def equal_pair(metric: LabelSpace) -> tuple[int, int] | None:
    """Return the positions of two labels at distance zero, or None if there are none."""
    groups = groups_of_equals(metric)
    order = np.argsort(groups, kind="stable")
    repeated = np.flatnonzero(groups[order][1:] == groups[order][:-1])
    return (int(order[repeated[0]]), int(order[repeated[0] + 1])) if len(repeated) else None


def _joined(nodes: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the component of each node in the graph whose edges are the given pairs."""
    return components(csr_array((np.ones(len(first)), (first, second)), shape=(nodes, nodes)))[1]
