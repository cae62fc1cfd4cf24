"""Metrics of predictions: distances in the label metric, and hierarchical ones on a tree of the labels.

All take names of labels. Heights, depths and hierarchical distances are numbers of edges of the tree.
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
        truth: names of the true labels, n.
        predicted: names of the predicted labels, n.
        metric: over the labels.
        exponent: ``p``, positive.

    Raises:
        WeightspaceError: a label is unknown, or the two are not as many, one at least.

    Source:
        Roberts et al. 2023, https://arxiv.org/abs/2307.12226, section 2.

    Example:
        >>> from weightspace import LabelMetric
        >>> metric = LabelMetric.from_tree({"cat": "animal", "dog": "animal", "car": "thing", "animal": "thing"})
        >>> mean_distance(["cat", "dog"], ["cat", "car"], metric=metric)
        1.5
    """
    if not 0 < exponent < math.inf:
        raise WeightspaceError(f"An exponent is a positive number; found {exponent!r}.")
    true, found = (metric.nodes[places] for places in _positions(truth, predicted, metric))
    return float(np.mean(pair_distances(metric.geometry, found, true) ** exponent))


def mean_squared_distance(truth: Sequence[Label], predicted: Sequence[Label], *, metric: LabelMetric) -> float:
    r"""Return :math:`\frac{1}{n} \sum_i d(\hat y_i, y_i)^2`, what the Fréchet mean is meant to make small.

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
    """Return the height of the lowest common ancestor of every prediction and its truth, int64 (n,).

    The height of a node is the number of edges to the farthest leaf below it: 0 for a leaf that is predicted rightly,
    the height of the tree where the two have the root alone in common.

    Args:
        truth: names of the true labels, n.
        predicted: names of the predicted labels, n.
        metric: made from a tree.
        root: the label at the top; by default that of the parents which the metric was made from.

    Raises:
        WeightspaceError: a label is unknown, the two are not as many, or the metric is no tree with a root.

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
    """Return the mean height of the lowest common ancestor over the mistakes alone; NaN where there are none.

    Args and errors are those of :func:`common_ancestor_height`. A model that makes many small mistakes has a low
    severity: see :func:`hierarchical_distance_at_k` with ``k = 1`` for the mean over all predictions.

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
        truth: names of the true labels, n.
        ranked: for every row the predicted labels, the best first, (n, k) or more of them (see ``metric.topk``).
        metric: made from a tree.
        k: how many of them count; all if None.
        root: as for :func:`common_ancestor_height`, and so are the errors.

    Raises:
        WeightspaceError: a row has fewer than ``k`` labels.

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
    _check_as_many(len(truth), len(rows))
    repeated = [label for label in truth for _ in range(count)]
    best = [label for row in rows for label in row[:count]]
    return float(common_ancestor_height(repeated, best, metric=metric, root=root).mean())


@dataclass(frozen=True)
class HierarchicalScores:
    """Hierarchical precision, recall and F, shares of 1; NaN where there is nothing to count."""

    precision: float
    recall: float
    f: float


def check_beta(beta: object) -> None:
    """Check the weight of recall in the hierarchical F.

    Raises:
        WeightspaceError: it is no positive number.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float | np.number) or not 0 < float(beta) < math.inf:
        raise WeightspaceError(f"The weight of recall is a positive number; found beta={beta!r}.")


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
        truth: names of the true labels, n.
        predicted: names of the predicted labels, n.
        metric: made from a tree.
        root: as for :func:`common_ancestor_height`, and so are the errors.
        beta: positive; more than 1 weighs recall more.

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
    common = int(tree.depth[tree.common_ancestors(found, true)].sum())  # without the root, a node has depth ancestors
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
    """Return the positions of the true and of the predicted labels."""
    true = metric.names.positions_of(truth, "true labels")
    found = metric.names.positions_of(predicted, "predicted labels")
    _check_as_many(len(true), len(found))
    return true, found


def _check_as_many(truth: int, predicted: int) -> None:
    if truth != predicted or not truth:
        raise WeightspaceError(
            f"Found {truth:,} true labels and {predicted:,} predictions; expected as many, one or more."
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
