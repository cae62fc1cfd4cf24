"""Scorers for scikit-learn, as in ``GridSearchCV(…, scoring=distance_scorer(metric))``.

A scorer takes a fitted estimator, inputs and true labels, and calls ``estimator.predict``. Higher scores are better;
errors are negated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels import metrics
from weightspace.labels.names import Label

if TYPE_CHECKING:
    from weightspace.labels.metric import LabelMetric


@dataclass(frozen=True)
class LabelScorer:
    """A scorer of an estimator's predictions.

    Attributes:
        function: ``function(truth, predicted, **keywords)`` of :mod:`weightspace.labels.metrics`.
        keywords: keyword arguments of the function.
        sign: 1, or -1 for an error.
        k: number of labels to rank; None to predict a single one.
    """

    function: Callable[..., float]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    sign: int = 1
    k: int | None = None

    def __post_init__(self) -> None:
        metric = self.keywords.get("metric")
        if not hasattr(metric, "names"):
            raise WeightspaceError(
                f"A scorer takes a LabelMetric; found a {type(metric).__name__}. Pass the classifier's metric."
            )

    def __call__(self, estimator: Any, X: Any, y: Any, **unused: Any) -> float:
        """Return the score of an estimator on inputs ``X`` with true labels ``y``."""
        found = estimator.predict(X) if self.k is None else ranked_labels(estimator, X, self.k)
        return self.sign * self.function(list(y), list(found), **self.keywords)

    def __repr__(self) -> str:
        return f"{'-' if self.sign < 0 else ''}{getattr(self.function, '__name__', self.function)}"


def distance_scorer(metric: LabelMetric, *, exponent: float = 2) -> LabelScorer:
    """Return the scorer of the negated mean d(prediction, truth)^exponent; see ``metrics.mean_distance``.

    Example:
        >>> from weightspace import LabelMetric
        >>> distance_scorer(LabelMetric.discrete(["cat", "dog"]))
        -mean_distance
    """
    return LabelScorer(metrics.mean_distance, {"metric": metric, "exponent": exponent}, sign=-1)


def mistake_severity_scorer(metric: LabelMetric, *, root: Label | None = None) -> LabelScorer:
    """Return the scorer of the negated mistake severity, 0 without mistakes; see ``metrics.mistake_severity``."""
    return LabelScorer(mistake_severity, {"metric": metric, "root": root}, sign=-1)


def hierarchical_distance_scorer(metric: LabelMetric, k: int = 1, *, root: Label | None = None) -> LabelScorer:
    """Return the scorer of the negated hierarchical distance at ``k``; see ``metrics.hierarchical_distance_at_k``.

    A :class:`FrechetClassifier` ranks labels by expected cost; other classifiers rank them by ``predict_proba``.
    """
    return LabelScorer(metrics.hierarchical_distance_at_k, {"metric": metric, "root": root}, sign=-1, k=k)


def hierarchical_precision_scorer(metric: LabelMetric, *, root: Label | None = None) -> LabelScorer:
    """Return the scorer of the hierarchical precision; see ``metrics.hierarchical_scores``."""
    return LabelScorer(metrics.hierarchical_precision, {"metric": metric, "root": root})


def hierarchical_recall_scorer(metric: LabelMetric, *, root: Label | None = None) -> LabelScorer:
    """Return the scorer of the hierarchical recall; see ``metrics.hierarchical_scores``."""
    return LabelScorer(metrics.hierarchical_recall, {"metric": metric, "root": root})


def hierarchical_f_scorer(metric: LabelMetric, *, root: Label | None = None, beta: float = 1.0) -> LabelScorer:
    """Return the scorer of the hierarchical F; see ``metrics.hierarchical_scores``.

    Raises:
        WeightspaceError: ``beta`` isn't a positive number.
    """
    metrics.check_beta(beta)
    return LabelScorer(metrics.hierarchical_f, {"metric": metric, "root": root, "beta": beta})


def ranked_labels(estimator: Any, X: Any, k: int) -> list[list[Any]]:
    """Return the names of the ``k`` best labels of each row, best first.

    Raises:
        WeightspaceError: the estimator has fewer than ``k`` labels, or neither ``topk`` nor ``predict_proba``.
    """
    if hasattr(estimator, "topk"):
        return [list(row) for row in estimator.topk(X, k)]
    if not hasattr(estimator, "predict_proba"):
        raise WeightspaceError(f"{type(estimator).__name__} has no predict_proba, which is needed to rank labels.")
    probabilities = np.asarray(estimator.predict_proba(X))
    if not 1 <= k <= probabilities.shape[1]:
        raise WeightspaceError(f"Found k={k}; expected 1 to {probabilities.shape[1]:,}, the number of classes.")
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return np.asarray(estimator.classes_)[best].tolist()


def mistake_severity(truth: Any, predicted: Any, **chosen: Any) -> float:
    """Return the mistake severity, or 0 without mistakes, so that a search can compare it."""
    found = metrics.mistake_severity(truth, predicted, **chosen)
    return 0.0 if np.isnan(found) else found
