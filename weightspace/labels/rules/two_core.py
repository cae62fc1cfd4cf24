"""Decomposition of a graph into its 2-core and pendant trees, each attached to the rest through one node.

Nodes of degree one are peeled off until none remain; a tree is peeled down to one node. Arrays are in *preorder*: tree
after tree, parents before children, each subtree contiguous, so that sums over subtrees are differences of two prefix
sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from weightspace.labels.rules.shortest_paths import Graph


@dataclass(frozen=True)
class PeeledGraph:
    """The pendant trees of a graph with ``n`` nodes; arrays are int64 (n,) in preorder unless stated otherwise.

    Attributes:
        order: the node at each position.
        parent: position of the parent; a root is its own.
        last: position of the last node of the subtree.
        depth: number of edges to the root of the tree.
        length: distance to the parent, float64; 0 at a root.
        height: distance to the root, float64.
        residue: rounding error of the height, so that ``height + residue`` has twice the precision of float64.
        tree: index of the tree.
        roots: position of each tree's root, one per node of the core, shape (core,).
        children: positions of all non-roots, by parent, then by preorder, shape (n - core,).
        first: index in ``children`` where the children of each position start, shape (n + 1,).
        core: the graph between the roots, in the order of ``roots``.
    """

    order: np.ndarray
    parent: np.ndarray
    last: np.ndarray
    depth: np.ndarray
    length: np.ndarray
    height: np.ndarray
    residue: np.ndarray
    tree: np.ndarray
    roots: np.ndarray
    children: np.ndarray
    first: np.ndarray
    core: Graph

    @cached_property
    def position(self) -> np.ndarray:
        """The preorder position of each node."""
        position = np.empty_like(self.order)
        position[self.order] = np.arange(len(self.order))
        return position

    @cached_property
    def exact(self) -> bool:
        """Whether all heights are exact."""
        return not self.residue.any()

    @cached_property
    def jump(self) -> np.ndarray:
        """Jump pointers: an ancestor of each position, so that any ancestor is reached in O(log depth) steps.

        Source:
            Myers 1983, https://doi.org/10.1016/0020-0190(83)90106-0, for the skew-binary jumps.
        """
        parent, depth = self.parent.tolist(), self.depth.tolist()
        jump = list(range(len(parent)))
        for position, above in enumerate(parent):
            if above != position:
                once = jump[above]
                even = depth[above] - depth[once] == depth[once] - depth[jump[once]]
                jump[position] = jump[once] if even else above
        return np.asarray(jump, dtype=np.int64)


def peel(graph: Graph) -> PeeledGraph:
    """Peel a connected symmetric graph, with positive weights and no loops, down to its 2-core; a tree to one node."""
    parent, length, peeled = _peeled(graph)
    return _in_preorder(graph, parent, length, peeled)


def _peeled(graph: Graph) -> tuple[list[int], list[float], list[int]]:
    """Return parents (-1 in the core), distances to them, and the peeled nodes in the order of their removal."""
    indptr, indices, data = graph.indptr.tolist(), graph.indices.tolist(), graph.data.tolist()
    nodes = graph.shape[0]
    degree = np.diff(graph.indptr).tolist()
    parent, length = [-1] * nodes, [0.0] * nodes
    gone = [False] * nodes
    peeled = [node for node in range(nodes) if degree[node] == 1]
    at, kept = 0, nodes
    while at < len(peeled) and kept > 1:
        node = peeled[at]
        at += 1
        gone[node] = True
        kept -= 1
        for edge in range(indptr[node], indptr[node + 1]):
            other = indices[edge]
            if not gone[other]:
                parent[node], length[node] = other, data[edge]
                degree[other] -= 1
                if degree[other] == 1:
                    peeled.append(other)
                break
    return parent, length, peeled[:at]


def _in_preorder(graph: Graph, parent: list[int], length: list[float], peeled: list[int]) -> PeeledGraph:
    nodes = len(parent)
    size = [1] * nodes
    for node in peeled:
        size[parent[node]] += size[node]
    position, following = [0] * nodes, [0] * nodes
    core = [node for node in range(nodes) if parent[node] < 0]
    free = 0
    for node in core:
        position[node], following[node] = free, free + 1
        free += size[node]
    depth, height, residue = [0] * nodes, [0.0] * nodes, [0.0] * nodes
    for node in reversed(peeled):
        above = parent[node]
        position[node] = following[above]
        following[node] = position[node] + 1
        following[above] += size[node]
        depth[node] = depth[above] + 1
        height[node] = whole = height[above] + length[node]
        added = whole - height[above]  # the exact rounding error (Knuth's two-sum)
        residue[node] = residue[above] + (height[above] - (whole - added)) + (length[node] - added)
    where = np.asarray(position, dtype=np.int64)
    order = np.empty(nodes, dtype=np.int64)
    order[where] = np.arange(nodes)
    above = np.asarray(parent, dtype=np.int64)
    parents = where[np.where(above < 0, np.arange(nodes), above)][order]
    here = np.arange(nodes)
    roots = where[core]
    children = here[parents != here]
    children = children[np.argsort(parents[children], kind="stable")]
    inside = graph[core][:, core].tocsr()
    return PeeledGraph(
        order=order,
        parent=parents,
        last=here + np.asarray(size)[order] - 1,
        depth=np.asarray(depth)[order],
        length=np.asarray(length)[order],
        height=np.asarray(height)[order],
        residue=np.asarray(residue)[order],
        tree=np.searchsorted(roots, here, side="right") - 1,
        roots=roots,
        children=children,
        first=np.searchsorted(parents[children], np.arange(nodes + 1)),
        core=csr_array((inside.data, inside.indices, inside.indptr), shape=inside.shape),
    )
