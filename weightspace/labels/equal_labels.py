"""Labels at distance zero from each other: whatever the weights, neither is ever the only mean."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from weightspace.labels.geometry import GraphGeometry, MatrixGeometry, PointGeometry
from weightspace.labels.label_space import LabelSpace
from weightspace.labels.rules.shortest_paths import components


def groups_of_equals(metric: LabelSpace) -> np.ndarray:
    """Return a number for every label, int64 (labels,), the same one for labels at distance zero."""
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


def first_of_equals(matrix: Tensor) -> np.ndarray | None:
    """Return for every row of a matrix of distances the first that is equal to it, int64 (rows,); None: all differ.

    Equal are rows at distance zero whose distances from all others agree but for rounding.
    """
    first = (matrix == 0).int().argmax(1).numpy()
    nodes = np.arange(len(first))
    tolerance = 16 * torch.finfo(matrix.dtype).eps
    for row in np.flatnonzero(first < nodes):
        if torch.allclose(matrix[row], matrix[first[row]], rtol=tolerance, atol=0):
            nodes[row] = nodes[first[row]]
    return None if (nodes == np.arange(len(nodes))).all() else nodes


def equal_pair(metric: LabelSpace) -> tuple[int, int] | None:
    """Return the positions of two labels at distance zero, or None if there are none."""
    groups = groups_of_equals(metric)
    order = np.argsort(groups, kind="stable")
    repeated = np.flatnonzero(groups[order][1:] == groups[order][:-1])
    return (int(order[repeated[0]]), int(order[repeated[0] + 1])) if len(repeated) else None


def _joined(nodes: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the component of every node in the graph of some pairs."""
    return components(csr_array((np.ones(len(first)), (first, second)), shape=(nodes, nodes)))[1]
