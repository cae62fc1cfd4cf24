"""Evaluation metrics of predictions: distances in the label metric, and hierarchical metrics on a tree of labels.

All take label names. Heights, depths and hierarchical distances are numbers of tree edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.hierarchy import Hierarchy
from weightspace.labels.names import Label
from weightspace.labels.pairs import pair_distances

if TYPE_CHECKING:
    from weightspace.labels.metric import LabelMetric


def mean_distance(
    truth: Sequence[Label], predicted: Sequence[Label], *, metric: LabelMetric, exponent: float = 1
) -> float:
    r"""Return the mean distance, :math:`\frac{1}{n} \sum_i d(\hat y_i, y_i)^p`.

    Args:
        truth: names of the n true labels.
        predicted: names of the n predicted labels.
        metric: label metric.
        exponent: ``p``, positive.

    Raises:
        WeightspaceError: a label is unknown, or the lengths differ or are zero.

    Source:
        Roberts et al. 2023, https://arxiv.org/abs/2307.12226, section 2.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"cat": "animal", "dog": "animal", "car": "thing", "animal": "thing"})
        >>> mean_distance(["cat", "dog"], ["cat", "car"], metric=metric)
        1.5
    """
    if not 0 < exponent < math.inf:
        raise WeightspaceError(f"An exponent must be a positive number; found {exponent!r}.")
    true, found = (metric.nodes[places] for places in _positions(truth, predicted, metric))
    return float(np.mean(pair_distances(metric.geometry, found, true) ** exponent))


def mean_squared_distance(truth: Sequence[Label], predicted: Sequence[Label], *, metric: LabelMetric) -> float:
    r"""Return :math:`\frac{1}{n} \sum_i d(\hat y_i, y_i)^2`, the error that the Fréchet mean aims to minimise.

    Args and errors are those of :func:`mean_distance`.

    Source:
        Roberts et al. 2023, https://arxiv.org/abs/2307.12226, section 2.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_grid((5,), labels=[1, 2, 3, 4, 5])
        >>> mean_squared_distance([1, 5], [3, 5], metric=metric)
        2.0
    """
    return mean_distance(truth, predicted, metric=metric, exponent=2)


def common_ancestor_height(
    truth: Sequence[Label], predicted: Sequence[Label], *, metric: LabelMetric, root: Label | None = None
) -> np.ndarray:
    """Return the height of the lowest common ancestor of each prediction and its true label, int64 (n,).

    The height of a node is the number of edges to the farthest leaf below it: 0 for a correctly predicted leaf, the
    height of the tree if the two labels have only the root in common.

    Args:
        truth: names of the n true labels.
        predicted: names of the n predicted labels.
        metric: metric of a tree.
        root: the root label; by default, the root of the parents that the metric was made from.

    Raises:
        WeightspaceError: a label is unknown, the lengths differ or are zero, or the metric isn't that of a rooted tree.

    Source:
        Deng et al. 2010, https://doi.org/10.1007/978-3-642-15555-0_6, section 3.2; Bertinetto et al. 2020,
        https://arxiv.org/abs/1912.09393, section 2.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"cat": "animal", "dog": "animal", "car": "thing", "animal": "thing"})
        >>> common_ancestor_height(["cat", "cat", "cat"], ["cat", "dog", "car"], metric=metric).tolist()
        [0, 1, 2]
    """
    tree = Hierarchy.of(metric, root)
    true, found = (metric.nodes[places] for places in _positions(truth, predicted, metric))
    return tree.height[tree.common_ancestors(found, true)]


def mistake_severity(
    truth: Sequence[Label], predicted: Sequence[Label], *, metric: LabelMetric, root: Label | None = None
) -> float:
    """Return the mean height of the lowest common ancestor over the mistakes only; NaN if there are none.

    Args and errors are those of :func:`common_ancestor_height`. A model that makes many small mistakes has a low
    severity; :func:`hierarchical_distance_at_k` with ``k = 1`` averages over all predictions.

    Source:
        Bertinetto et al. 2020, https://arxiv.org/abs/1912.09393, section 2.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"cat": "animal", "dog": "animal", "car": "thing", "animal": "thing"})
        >>> mistake_severity(["cat", "cat", "cat"], ["cat", "dog", "car"], metric=metric)
        1.5
    """
    heights = common_ancestor_height(truth, predicted, metric=metric, root=root)
    true, found = _positions(truth, predicted, metric)
    wrong = metric.nodes[true] != metric.nodes[found]
    return float(heights[wrong].mean()) if wrong.any() else math.nan


def hierarchical_distance_at_k(
    truth: Sequence[Label],
    ranked: Sequence[Sequence[Label]],
    *,
    metric: LabelMetric,
    k: int | None = None,
    root: Label | None = None,
) -> float:
    r"""Return :math:`\frac{1}{nk} \sum_i \sum_{j \le k} h(\mathrm{lca}(\hat y_{ij}, y_i))`.

    Args:
        truth: names of the n true labels.
        ranked: predicted labels of each row, best first, (n, k) or wider (see ``metric.topk``).
        metric: metric of a tree.
        k: number of labels that count; all if None.
        root: as for :func:`common_ancestor_height`.

    Raises:
        WeightspaceError: a row has fewer than ``k`` labels, or as for :func:`common_ancestor_height`.

    Source:
        Bertinetto et al. 2020, https://arxiv.org/abs/1912.09393, section 2.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"cat": "animal", "dog": "animal", "car": "thing", "animal": "thing"})
        >>> hierarchical_distance_at_k(["cat"], [["cat", "dog", "car"]], metric=metric, k=2)
        0.5
    """
    rows = [list(row) for row in ranked]
    width = min((len(row) for row in rows), default=0)
    count = width if k is None else k
    if not 1 <= count <= width:
        raise WeightspaceError(
            f"Found k={count}, and {width} ranked labels in the shortest row; expected 1 to {width}."
        )
    _check_lengths(len(truth), len(rows))
    repeated = [label for label in truth for _ in range(count)]
    best = [label for row in rows for label in row[:count]]
    return float(common_ancestor_height(repeated, best, metric=metric, root=root).mean())


@dataclass(frozen=True)
class HierarchicalScores:
    """Hierarchical precision, recall and F, between 0 and 1; NaN if undefined."""

    precision: float
    recall: float
    f: float


def check_beta(beta: object) -> None:
    """Check the weight of recall in the hierarchical F.

    Raises:
        WeightspaceError: it isn't a positive number.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float | np.number) or not 0 < float(beta) < math.inf:
        raise WeightspaceError(f"The weight of recall must be a positive number; found beta={beta!r}.")


def hierarchical_scores(
    truth: Sequence[Label],
    predicted: Sequence[Label],
    *,
    metric: LabelMetric,
    root: Label | None = None,
    beta: float = 1.0,
) -> HierarchicalScores:
    r"""Return hierarchical precision, recall and F of predictions in a tree.

    With the sets :math:`\hat A_i` and :math:`A_i` of the predicted and the true label with their ancestors, the root
    excluded,

    .. math:: hP = \frac{\sum_i |\hat A_i \cap A_i|}{\sum_i |\hat A_i|}, \quad
        hR = \frac{\sum_i |\hat A_i \cap A_i|}{\sum_i |A_i|}, \quad
        hF_\beta = \frac{(\beta^2 + 1)\, hP\, hR}{\beta^2 hP + hR}.

    Args:
        truth: names of the n true labels.
        predicted: names of the n predicted labels.
        metric: metric of a tree.
        root: as for :func:`common_ancestor_height`.
        beta: positive; values above 1 favour recall.

    Raises:
        WeightspaceError: as for :func:`common_ancestor_height`, or ``beta`` isn't positive.

    Source:
        Kiritchenko, Matwin, Nock and Famili 2006, https://doi.org/10.1007/11766247_34, section 4; Silla and Freitas
        2011, https://doi.org/10.1007/s10618-010-0175-9, section 5.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"cat": "animal", "dog": "animal", "car": "thing", "animal": "thing"})
        >>> hierarchical_scores(["cat", "dog"], ["cat", "animal"], metric=metric)
        HierarchicalScores(precision=1.0, recall=0.75, f=0.8571428571428571)
    """
    check_beta(beta)
    tree = Hierarchy.of(metric, root)
    true, found = (metric.nodes[places] for places in _positions(truth, predicted, metric))
    common = int(tree.depth[tree.common_ancestors(found, true)].sum())  # excluding the root, a node has depth ancestors
    predicted_nodes, true_nodes = (int(tree.depth[nodes].sum()) for nodes in (found, true))
    return HierarchicalScores(
        _share(common, predicted_nodes),
        _share(common, true_nodes),
        _share((beta**2 + 1) * common, beta**2 * true_nodes + predicted_nodes),
    )


def hierarchical_precision(truth: Sequence[Label], predicted: Sequence[Label], **chosen: Any) -> float:
    """Return the hierarchical precision; see :func:`hierarchical_scores`, also for the keywords."""
    return hierarchical_scores(truth, predicted, **chosen).precision


def hierarchical_recall(truth: Sequence[Label], predicted: Sequence[Label], **chosen: Any) -> float:
    """Return the hierarchical recall; see :func:`hierarchical_scores`, also for the keywords."""
    return hierarchical_scores(truth, predicted, **chosen).recall


def hierarchical_f(truth: Sequence[Label], predicted: Sequence[Label], **chosen: Any) -> float:
    """Return the hierarchical F; see :func:`hierarchical_scores`, also for the keywords."""
    return hierarchical_scores(truth, predicted, **chosen).f


def _positions(
    truth: Sequence[Label], predicted: Sequence[Label], metric: LabelMetric
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the true and the predicted labels."""
    true = metric.names.positions_of(truth, "true labels")
    found = metric.names.positions_of(predicted, "predicted labels")
    _check_lengths(len(true), len(found))
    return true, found


def _check_lengths(truth: int, predicted: int) -> None:
    if truth != predicted or not truth:
        raise WeightspaceError(
            f"Found {truth:,} true labels and {predicted:,} predictions; expected equal, positive numbers."
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
