"""Shortest path lengths from a graph's pendant trees and 2-core: O(nodes) per source, plus Dijkstra within the core.

Within a tree, d(u, v) = h(u) + h(v) − 2 h(lowest common ancestor); heights carry their float64 residues, so that
differences of large heights keep their digits. Between trees, the distance is the sum of both heights and the distance
of the roots in the core. Nodes are preorder positions inside this module, and graph nodes outside it.
"""

from __future__ import annotations

import numpy as np

from weightspace.labels.rules.shortest_paths import distances_from
from weightspace.labels.rules.two_core import Fringe


def path_lengths(fringe: Fringe, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
    """Return the distances from sources to targets (all nodes if None), float64 (sources, targets)."""
    start, goals = fringe.position[sources], fringe.position if targets is None else fringe.position[targets]
    trees, which = np.unique(fringe.tree[start], return_inverse=True)
    between = distances_from(fringe.core, trees) if len(fringe.roots) > 1 else None
    trees_of_goals, heights_of_goals = fringe.tree[goals], fringe.height[goals]
    found = np.empty((len(sources), len(goals)))
    for row, (source, tree) in enumerate(zip(start.tolist(), which.tolist(), strict=True)):
        root = int(fringe.roots[trees[tree]])
        own = _within_tree(fringe, source, slice(root, int(fringe.last[root]) + 1))
        if between is None:
            np.take(own, goals, out=found[row])
            continue
        np.take(between[tree], trees_of_goals, out=found[row])
        found[row] += heights_of_goals + fringe.height[source]
        inside = np.flatnonzero(trees_of_goals == trees[tree])
        found[row, inside] = own[goals[inside] - root]
    return found


def _within_tree(fringe: Fringe, source: int, tree: slice) -> np.ndarray:
    """Return the distances from a position to all positions of its tree.

    An ancestor of the source is its lowest common ancestor with everything in the ancestor's subtree but outside that
    of the next lower ancestor: one contiguous range of positions before that subtree and one after it.
    """
    above = tree.start + np.flatnonzero(fringe.last[tree.start : source + 1] >= source)  # ancestors, and the source
    bounds = np.concatenate([above, fringe.last[above[::-1]] + 1])
    stretches = np.diff(bounds)

    def of_common(values: np.ndarray) -> np.ndarray:
        own = values[above]
        return np.repeat(np.concatenate([own, own[-2::-1]]), stretches)

    common = of_common(fringe.height)
    found = fringe.height[tree] - common
    found += np.subtract(fringe.height[source], common, out=common)
    if not fringe.exact:
        common = of_common(fringe.residue)
        found += (fringe.residue[tree] - common) + (fringe.residue[source] - common)
    return found


def pair_lengths(fringe: Fringe, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distance on a tree of each pair of nodes at the same index, float64 (n,)."""
    a, b = fringe.position[first], fringe.position[second]
    common = _lowest_common(fringe, np.minimum(a, b), np.maximum(a, b))
    found = (fringe.height[a] - fringe.height[common]) + (fringe.height[b] - fringe.height[common])
    if not fringe.exact:
        found += (fringe.residue[a] - fringe.residue[common]) + (fringe.residue[b] - fringe.residue[common])
    return found


def _lowest_common(fringe: Fringe, early: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Return the lowest common ancestors: the first one above ``early`` whose subtree contains ``late``."""
    at = early.copy()
    below = np.flatnonzero(fringe.last[at] < late)
    while len(below):
        here, goal = at[below], late[below]
        jumps = fringe.jump[here]
        at[below] = np.where(fringe.last[jumps] < goal, jumps, fringe.parent[here])
        below = below[fringe.last[at[below]] < goal]
    return at
