"""Active class selection: the classes to observe next so that the most labels can be predicted.

On a tree, the label farthest from the locus in hops adds the most, and repeating this greedy choice is optimal for any
number of classes. In general, the best next label is found by trying all of them, and greedy repetition has no such
guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import DiscreteGeometry, GraphGeometry
from weightspace.labels.label_space import LabelSpace
from weightspace.labels.locus import in_locus, on_paths, whole_tree
from weightspace.labels.names import Label
from weightspace.labels.rules.shortest_paths import Graph, distances_from

#: Largest number of labels that are all tried.
_TRIED = 200


def next_classes(metric: LabelSpace, observed: Sequence[Label], n: int = 1) -> list[Any]:
    """Return ``n`` labels not yet observed; see :meth:`LabelMetric.next_classes`.

    Source:
        Roberts et al. 2023, https://arxiv.org/abs/2307.12226, section 3, for trees.
    """
    seen = metric.names.positions(observed, "observed classes")
    if n < 0 or n > len(metric) - len(seen):
        raise WeightspaceError(
            f"Found n={n:,} classes to observe next; expected 0 to {len(metric) - len(seen):,}: {len(seen):,} of "
            f"{len(metric):,} labels are observed."
        )
    chosen = _on_tree(metric, seen, n) if whole_tree(metric) else _by_trial(metric, seen, n)
    return [metric.labels[i] for i in chosen]


def _on_tree(metric: LabelSpace, seen: np.ndarray, n: int) -> list[int]:
    """Return the ends of the longest paths out of the locus, then the remaining labels."""
    assert isinstance(metric.geometry, GraphGeometry)
    tree = metric.geometry.graph
    chosen: list[int] = []
    if len(seen) == 0 and n > 0:
        hops = distances_from(csr_array((np.ones(tree.nnz), tree.indices, tree.indptr), tree.shape), np.asarray([0]))[0]
        chosen.append(int(hops.argmax()))
    start = np.concatenate([seen, np.asarray(chosen, dtype=np.int64)])
    if len(chosen) < n:
        chosen += _path_ends(tree, on_paths(tree, start))[: n - len(chosen)]
    taken = {*start.tolist(), *chosen}
    return chosen + [i for i in range(len(metric)) if i not in taken][: n - len(chosen)]


def _path_ends(tree: Graph, inside: np.ndarray) -> list[int]:
    """Return the leaves outside the locus, ordered by the length of the path that each adds to the previous ones."""
    indptr, indices = tree.indptr.tolist(), tree.indices.tolist()
    order = np.flatnonzero(inside).tolist()
    first = len(order)
    above = {node: -1 for node in order}
    for node in order:
        for other in indices[indptr[node] : indptr[node + 1]]:
            if other not in above:
                above[other] = node
                order.append(other)
    below: dict[int, tuple[int, int]] = {}  # longest path down and minus its end, so that ties go to the lowest
    paths: list[tuple[int, int]] = []
    for node in reversed(order[first:]):
        length, end = below.pop(node, (0, -node))
        path = (length + 1, end)
        parent = above[node]
        if inside[parent]:
            paths.append(path)
        elif parent in below:
            paths.append(min(path, below[parent]))
            below[parent] = max(path, below[parent])
        else:
            below[parent] = path
    return [-end for _, end in sorted(paths, reverse=True)]


def _by_trial(metric: LabelSpace, seen: np.ndarray, n: int) -> list[int]:
    """Repeatedly choose the best next label; ties go to the lowest position."""
    if isinstance(metric.geometry, DiscreteGeometry):  # each label adds only itself
        return np.setdiff1d(np.arange(len(metric)), seen)[:n].tolist()
    if len(metric) > _TRIED and n > 0:
        raise WeightspaceError(
            f"All {len(metric):,} labels would have to be tried; expected at most {_TRIED}, or a tree."
        )
    chosen: list[int] = []
    for _ in range(n):
        start = [*seen.tolist(), *chosen]
        free = [i for i in range(len(metric)) if i not in start]
        sizes = [int(in_locus(metric, np.asarray([*start, one])).sum()) for one in free]
        chosen.append(free[int(np.argmax(sizes))])
    return chosen
