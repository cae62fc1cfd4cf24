r"""Prediction sets: labels, or a node of a tree, that contain the truth with a given probability (split conformal).

Sets are calibrated on held-out data. If the calibration rows and the new row are exchangeable, the set contains the
truth with a probability of at least ``coverage`` over the draw of both, for any classifier. The threshold is the
:math:`\lceil (n+1)\,\mathrm{coverage} \rceil`-th smallest of the nonconformity scores :math:`s_1 … s_n` of the
calibration rows; if :math:`n` is too small for it to exist, sets contain all labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError, warn_caller
from weightspace.labels.hierarchy import Hierarchy
from weightspace.labels.names import Label, Names
from weightspace.labels.probabilities import checked_rows
from weightspace.reprs import brief

if TYPE_CHECKING:
    from weightspace.labels.metric import LabelMetric


@brief
@dataclass(frozen=True)
class LabelSets:
    """Calibrated prediction sets of observed labels.

    Attributes:
        observed: the labels, in the order of the columns.
        coverage: the requested coverage.
        least: smallest probability of labels in a set; 0 if all are.
        rows: number of calibration rows.
    """

    observed: tuple[Any, ...]
    coverage: float
    least: float
    rows: int

    def predict(self, probabilities: Any) -> list[list[Any]]:
        """Return the prediction set of each row of (n, K), most probable label first; never empty.

        Raises:
            WeightspaceError: as for ``LabelMetric.predict``.
        """
        rows = _normalised(probabilities, len(self.observed))
        order = np.argsort(-rows, axis=1, kind="stable")
        sizes = np.maximum((rows >= self.least).sum(1), 1)
        return [[self.observed[i] for i in best[:size]] for best, size in zip(order, sizes.tolist(), strict=True)]


def conformal_labels(
    probabilities: Any, truth: Sequence[Label], *, observed: Sequence[Label], coverage: float = 0.9
) -> LabelSets:
    """Return the label sets, smallest on average, that contain the truth with a given probability.

    The score of a label is its negated probability: a set contains all labels at least as probable as a threshold.
    The most probable label is always included, so that sets contain the truth at least as often as argmax is right.

    Args:
        probabilities: (n, K) of calibration data, one column per observed class; rows are normalised.
        truth: names of the n true labels, all of them observed.
        observed: names of the columns.
        coverage: between 0 and 1.

    Raises:
        WeightspaceError: shapes do not match, a true label was not observed, or the coverage is invalid.

    Warns:
        WeightspaceWarning: there are too few rows for the coverage, so that sets contain all labels.

    Source:
        Sadinle, Lei and Wasserman 2019, https://arxiv.org/abs/1609.00451, theorem 1, for the smallest sets;
        Papadopoulos et al. 2002, https://doi.org/10.1007/3-540-36755-1_29, for the split.

    Example:
        >>> calibration = [[0.9, 0.1]] * 9 + [[0.6, 0.4]]
        >>> sets = conformal_labels(calibration, ["a"] * 9 + ["b"], observed=["a", "b"], coverage=0.9)
        >>> sets.predict([[0.55, 0.45], [0.7, 0.3]])
        [['a', 'b'], ['a']]
    """
    names = Names(observed)
    rows = _normalised(probabilities, len(names))
    missing = next((label for label in truth if label not in names), None)
    if missing is not None:
        raise WeightspaceError(
            f"The true label {missing!r} was not observed, so no set of observed labels contains it. Use "
            "conformal_nodes (--nodes), whose nodes may contain labels that were never observed."
        )
    true = names.positions_of(truth, "true labels")
    _check(len(rows), len(true), coverage)
    threshold = _threshold(-rows[np.arange(len(rows)), true], coverage)
    return LabelSets(tuple(names), coverage, 0.0 if threshold == math.inf else -threshold, len(rows))


@brief
@dataclass(frozen=True)
class NodeSets:
    """Calibrated prediction sets that are nodes of a tree, each standing for all labels below it.

    Attributes:
        tree: the tree of the labels.
        observed: the labels of the columns.
        coverage: the requested coverage.
        mass: a node whose subtree has more than this probability is general enough; infinite if only the root is.
        rows: number of calibration rows.
    """

    tree: Hierarchy
    observed: tuple[Any, ...]
    coverage: float
    mass: float
    rows: int

    def predict(self, probabilities: Any) -> list[Any]:
        """Return the lowest node for each row of (n, K) that contains the truth with the requested probability.

        Raises:
            WeightspaceError: as for ``LabelMetric.predict``.
        """
        rows = _normalised(probabilities, len(self.observed))
        names, found = self.tree.names, []
        for path, masses in _paths(self.tree, self.tree.nodes(self.observed, "observed classes"), rows):
            depth = int((masses > self.mass).sum()) - 1  # masses decrease along the path
            node = int(path[max(depth, 0)])
            while node not in names:  # a node without a label takes the name of its nearest labelled ancestor
                node = int(self.tree.parent[node])
            found.append(names[node])
        return found

    def holds(self, nodes: Sequence[Label], labels: Sequence[Label]) -> np.ndarray:
        """Return whether each node is, or is an ancestor of, the label at the same index, bool (n,)."""
        above, below = (self.tree.nodes(side, "labels") for side in (nodes, labels))
        return self.tree.common_ancestors(above, below) == above


def conformal_nodes(
    probabilities: Any,
    truth: Sequence[Label],
    *,
    metric: LabelMetric,
    observed: Sequence[Label],
    root: Label | None = None,
    coverage: float = 0.9,
) -> NodeSets:
    """Return the lowest nodes of a tree that contain the truth with a given probability.

    On the path from the most probable class up to the root, the lowest node is chosen whose subtree has more than a
    threshold of the probability. True labels may be inner nodes and labels that were never observed.

    Args:
        probabilities: (n, K) of calibration data, one column per observed class; rows are normalised.
        truth: names of the n true labels.
        metric: metric of a tree.
        observed: names of the columns.
        root: the root label; by default, the root of the parents that the metric was made from.
        coverage: between 0 and 1.

    Raises:
        WeightspaceError: shapes do not match, a label is unknown, the coverage is invalid, or the metric isn't that of
            a rooted tree.

    Warns:
        WeightspaceWarning: there are too few rows for the coverage, so that the root is always predicted.

    Source:
        Gupta, Kuchibhotla and Ramdas 2022, https://arxiv.org/abs/1910.10562, section 2, for nested sets; nested
        subtrees along a path are our derivation.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"animal": "thing", "cat": "animal", "dog": "animal", "car": "thing"})
        >>> calibration, truth = [[0.8, 0.2, 0.0], [0.6, 0.4, 0.0]] * 5, ["cat", "dog"] * 5
        >>> nodes = conformal_nodes(calibration, truth, metric=metric, observed=["cat", "dog", "car"])
        >>> nodes.predict([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]])
        ['cat', 'animal']
    """
    tree = Hierarchy.of(metric, root)
    rows = _normalised(probabilities, len(observed))
    seen, true = tree.nodes(observed, "observed classes"), tree.nodes(truth, "true labels")
    metric.names.positions(observed, "observed classes")  # checks that they are distinct
    _check(len(rows), len(true), coverage)
    scores = np.empty(len(rows))
    for row, (path, masses) in enumerate(_paths(tree, seen, rows)):
        common = int(tree.depth[tree.common_ancestors(path[-1:], true[row : row + 1])][0])
        scores[row] = masses[common + 1] if common + 1 < len(masses) else -1.0  # of the highest node without the truth
    return NodeSets(tree, tuple(observed), coverage, _threshold(scores, coverage), len(rows))


def _paths(tree: Hierarchy, seen: np.ndarray, rows: np.ndarray) -> Any:
    """Yield for each row the path from the root to its most probable class, and the probability below each node."""
    paths: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for row in rows:
        best = int(row.argmax())
        if best not in paths:
            path = [int(seen[best])]
            while path[-1] != tree.root:
                path.append(int(tree.parent[path[-1]]))
            common = tree.common_ancestors(np.full(len(seen), seen[best]), seen)
            paths[best] = np.asarray(path[::-1]), tree.depth[common]
        path, depths = paths[best]
        below = np.bincount(depths, weights=row, minlength=len(path))
        yield path, below[::-1].cumsum()[::-1]


def _normalised(probabilities: Any, columns: int) -> np.ndarray:
    """Return rows of probabilities that sum to one, float64 (n, columns).

    Raises:
        WeightspaceError: the rows aren't valid probabilities.
    """
    rows = checked_rows(probabilities, columns).cpu().double().numpy()
    return rows / rows.sum(1, keepdims=True)


def _threshold(scores: np.ndarray, coverage: float) -> float:
    """Return the ⌈(n + 1) coverage⌉-th smallest score; infinity, with a warning, if there are fewer."""
    rank = _rank(len(scores), coverage)
    if rank > len(scores):
        warn_caller(
            f"Coverage {coverage:g} needs at least {_fewest_rows(coverage):,} calibration rows; found {len(scores):,}: "
            "every prediction stands for all labels. Use more rows, or a lower coverage."
        )
        return math.inf
    return float(np.sort(scores)[rank - 1])


def _rank(rows: int, coverage: float) -> int:
    """Return ⌈(n + 1) coverage⌉."""
    return math.ceil((rows + 1) * coverage - 1e-9)  # .9 · 10 is 9 despite rounding


def _fewest_rows(coverage: float) -> int:
    """Return the smallest ``n`` with ⌈(n + 1) coverage⌉ ≤ n, that is ⌈coverage / (1 − coverage)⌉, as rounded above."""
    rows = max(1, math.floor(coverage / (1 - coverage)) - 1)
    while _rank(rows, coverage) > rows:
        rows += 1
    return rows


def _check(rows: int, truth: int, coverage: float) -> None:
    if rows != truth or not rows:
        raise WeightspaceError(
            f"Found {rows:,} rows of probabilities and {truth:,} true labels; expected equal, positive numbers."
        )
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage < 1:
        raise WeightspaceError(f"The coverage must be a probability between 0 and 1; found {coverage!r}.")
