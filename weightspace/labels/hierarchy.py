"""Rooted trees of labels: ancestors, heights, and lowest common ancestors.

Heights and depths are numbers of edges. Every label belongs to its own subtree and is an ancestor of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse.csgraph import breadth_first_order

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import GraphGeometry
from weightspace.labels.names import Label

if TYPE_CHECKING:
    from weightspace.labels.metric import LabelMetric


@dataclass(frozen=True)
class Hierarchy:
    """A rooted tree over the nodes of a metric, some or all of which have labels; arrays are int64, indexed by node.

    Attributes:
        metric: the metric that the labels belong to.
        root: the root node.
        order: the nodes, parents before their children.
        parent: parent of each node; the root is its own.
        depth: number of edges to the root.
        height: number of edges to the farthest leaf below; 0 at a leaf.
    """

    metric: LabelMetric
    root: int
    order: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, metric: LabelMetric, root: Label | None = None) -> Hierarchy:
        """Return the tree of a metric, rooted at a label.

        Args:
            metric: metric of a tree.
            root: the root label; by default, the root of the parents that the metric was made from.

        Raises:
            WeightspaceError: the metric isn't that of a tree, or the root is unknown.
        """
        geometry = metric.geometry
        if not isinstance(geometry, GraphGeometry) or not geometry.is_tree:
            kind = "graph with cycles" if isinstance(geometry, GraphGeometry) else geometry.kind
            raise WeightspaceError(
                f"A hierarchy needs a rooted tree; found a metric of kind {kind}. Expected LabelMetric.from_tree."
            )
        top = metric.root if root is None else root
        if top is None:
            raise WeightspaceError(
                "Which label is the root? A tree of edges has none: pass root=… (--root), or make the metric from "
                "parents."
            )
        node = int(metric.nodes[metric.names.positions_of([top], "roots")[0]])
        order, before = breadth_first_order(geometry.graph, node, directed=False)
        parent = before.astype(np.int64)
        parent[node] = node
        depth, height = np.zeros(geometry.nodes, dtype=np.int64), np.zeros(geometry.nodes, dtype=np.int64)
        for one in order[1:].tolist():
            depth[one] = depth[parent[one]] + 1
        for one in order[:0:-1].tolist():
            height[parent[one]] = max(height[parent[one]], height[one] + 1)
        return cls(metric, node, order.astype(np.int64), parent, depth, height)

    def nodes(self, labels: Sequence[Label], what: str) -> np.ndarray:
        """Return the nodes of labels, which may repeat, int64 (n,).

        Raises:
            WeightspaceError: a label is unknown.
        """
        return self.metric.nodes[self.metric.names.positions_of(labels, what)]

    def common_ancestors(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the lowest common ancestor of each pair of nodes at the same index, int64 (n,)."""
        a, b = first.copy(), second.copy()
        while (apart := a != b).any():
            climbs = self.depth[a] >= self.depth[b]
            a, b = np.where(apart & climbs, self.parent[a], a), np.where(apart & ~climbs, self.parent[b], b)
        return a

    def name(self, node: int) -> Any:
        """Return the first label at a node, or None if it has none."""
        return self.names.get(node)

    @property
    def names(self) -> dict[int, Any]:
        """The first label at each node that has one."""
        found: dict[int, Any] = {}
        for node, label in zip(self.metric.nodes.tolist(), self.metric.names, strict=True):
            found.setdefault(node, label)
        return found
