"""Shortest path lengths from a graph's pendant trees and 2-core: O(nodes) per source, plus Dijkstra within the core.

Within a tree, d(u, v) = h(u) + h(v) − 2 h(lowest common ancestor); heights carry their float64 residues, so that
differences of large heights keep their digits. Between trees, the distance is the sum of both heights and the distance
of the roots in the core. Nodes are preorder positions inside this module, and graph nodes outside it.
"""

from __future__ import annotations

import numpy as np

from weightspace.labels.rules.shortest_paths import distances_from
from weightspace.labels.rules.two_core import PeeledGraph


def path_lengths(peeled: PeeledGraph, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
    """Return the distances from sources to targets (all nodes if None), float64 (sources, targets)."""
    start, goals = peeled.position[sources], peeled.position if targets is None else peeled.position[targets]
    trees, which = np.unique(peeled.tree[start], return_inverse=True)
    between = distances_from(peeled.core, trees) if len(peeled.roots) > 1 else None
    trees_of_goals, heights_of_goals = peeled.tree[goals], peeled.height[goals]
    found = np.empty((len(sources), len(goals)))
    for row, (source, tree) in enumerate(zip(start.tolist(), which.tolist(), strict=True)):
        root = int(peeled.roots[trees[tree]])
        own = _within_tree(peeled, source, slice(root, int(peeled.last[root]) + 1))
        if between is None:
            np.take(own, goals, out=found[row])
            continue
        np.take(between[tree], trees_of_goals, out=found[row])
        found[row] += heights_of_goals + peeled.height[source]
        inside = np.flatnonzero(trees_of_goals == trees[tree])
        found[row, inside] = own[goals[inside] - root]
    return found


def _within_tree(peeled: PeeledGraph, source: int, tree: slice) -> np.ndarray:
    """Return the distances from a position to all positions of its tree.

    An ancestor of the source is its lowest common ancestor with everything in the ancestor's subtree but outside that
    of the next lower ancestor: one contiguous range of positions before that subtree and one after it.
    """
    above = tree.start + np.flatnonzero(peeled.last[tree.start : source + 1] >= source)  # ancestors, and the source
    bounds = np.concatenate([above, peeled.last[above[::-1]] + 1])
    stretches = np.diff(bounds)

    def of_common(values: np.ndarray) -> np.ndarray:
        own = values[above]
        return np.repeat(np.concatenate([own, own[-2::-1]]), stretches)

    common = of_common(peeled.height)
    found = peeled.height[tree] - common
    found += np.subtract(peeled.height[source], common, out=common)
    if not peeled.exact:
        common = of_common(peeled.residue)
        found += (peeled.residue[tree] - common) + (peeled.residue[source] - common)
    return found


def pair_lengths(peeled: PeeledGraph, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distance on a tree of each pair of nodes at the same index, float64 (n,)."""
    a, b = peeled.position[first], peeled.position[second]
    common = _lowest_common(peeled, np.minimum(a, b), np.maximum(a, b))
    found = (peeled.height[a] - peeled.height[common]) + (peeled.height[b] - peeled.height[common])
    if not peeled.exact:
        found += (peeled.residue[a] - peeled.residue[common]) + (peeled.residue[b] - peeled.residue[common])
    return found


def _lowest_common(peeled: PeeledGraph, early: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Return the lowest common ancestors: the first one above ``early`` whose subtree contains ``late``."""
    at = early.copy()
    below = np.flatnonzero(peeled.last[at] < late)
    while len(below):
        here, goal = at[below], late[below]
        jumps = peeled.jump[here]
        at[below] = np.where(peeled.last[jumps] < goal, jumps, peeled.parent[here])
        below = below[peeled.last[at[below]] < goal]
    return at
