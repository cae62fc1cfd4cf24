"""A scikit-learn classifier that predicts over a label metric."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from weightspace.errors import WeightspaceError
from weightspace.labels.names import label_array
from weightspace.labels.pairs import pair_distances

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, clone
    from sklearn.utils.validation import check_is_fitted
except Exception as error:  # a broken installation raises more than ImportError
    raise WeightspaceError(f'scikit-learn cannot be imported ({error}): pip install "weightspace[demo]"') from error

if TYPE_CHECKING:
    from weightspace.labels.label_space import Outputs
    from weightspace.labels.metric import LabelMetric


class FrechetClassifier(ClassifierMixin, BaseEstimator):
    """Meta-estimator that predicts the label of least expected cost under the probabilities of a classifier.

    The observed classes are the estimator's ``classes_``, by name. An already fitted estimator can predict right away;
    ``fit`` fits a clone.

    Args:
        estimator: classifier with ``predict_proba``.
        metric: label metric that includes the labels in ``y``.
        outputs: as for ``metric.predict``.
        exponent: as for ``metric.predict``.
        temperature: divides the logarithms of the probabilities, which are normalised again; fitted by
            ``weightspace.labels.fit_temperature`` on those logarithms.

    Attributes:
        estimator_: the fitted clone.
        classes_: the observed classes, the columns of ``predict_proba``.
        outputs_: the labels that can be predicted, the columns of ``expected_cost``.

    Example:
        >>> import weightspace as ws
        >>> from sklearn.linear_model import LogisticRegression
        >>> metric = ws.LabelMetric.from_tree({"animal": "entity", "cat": "animal", "dog": "animal", "car": "entity"})
        >>> X, y = [[0.0, 0.0], [0.0, 1.0], [5.0, 0.5]], ["cat", "dog", "car"]
        >>> classifier = ws.FrechetClassifier(LogisticRegression(), metric).fit(X, y)
        >>> classifier.predict([[0.0, 0.5]]).tolist()  # equally close to cat and dog
        ['animal']
    """

    def __init__(
        self,
        estimator: Any = None,
        metric: LabelMetric | None = None,
        *,
        outputs: Outputs = "all",
        exponent: float = 2,
        temperature: float = 1,
    ) -> None:
        self.estimator = estimator
        self.metric = metric
        self.outputs = outputs
        self.exponent = exponent
        self.temperature = temperature

    def fit(self, X: Any, y: Any, **options: Any) -> FrechetClassifier:
        """Fit a clone of the estimator.

        Raises:
            WeightspaceError: the metric lacks a label of ``y``, or there is no ``predict_proba``.
        """
        metric, _ = self._parts()
        metric.names.positions(np.unique(np.asarray(y)), "labels in y")
        unfitted: Any = clone(self.estimator)
        self.estimator_ = unfitted.fit(X, y, **options)
        self.n_features_in_ = getattr(self.estimator_, "n_features_in_", None)
        return self

    @property
    def classes_(self) -> np.ndarray:
        """The observed classes, in the order of the columns of :meth:`predict_proba`."""
        return np.asarray(self._fitted()[1].classes_)

    @property
    def outputs_(self) -> np.ndarray:
        """The labels that can be predicted, in the metric's order: the columns of :meth:`expected_cost`."""
        metric, fitted = self._fitted()
        decision = metric.decision(observed=fitted.classes_, outputs=self.outputs, exponent=self.exponent)
        return label_array([metric.labels[i] for i in decision.answers])

    def predict(self, X: Any) -> np.ndarray:
        """Return the names of the labels of least expected cost, (n,)."""
        metric, fitted = self._fitted()
        chosen = {"observed": fitted.classes_, "outputs": self.outputs, "exponent": self.exponent}
        found = metric.predict(self._probabilities(fitted, X), **chosen)
        return label_array([metric.labels[i] for i in found])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the estimator's probabilities at the temperature, of the classes in ``classes_``, (n, K)."""
        return self._probabilities(self._fitted()[1], X)

    def expected_cost(self, X: Any) -> np.ndarray:
        """Return the expected cost of every output, (n, outputs)."""
        metric, fitted = self._fitted()
        chosen = {"observed": fitted.classes_, "outputs": self.outputs, "exponent": self.exponent}
        return metric.expected_cost(self._probabilities(fitted, X), **chosen)

    def topk(self, X: Any, k: int) -> np.ndarray:
        """Return the names of the ``k`` labels of least expected cost, best first, (n, k)."""
        metric, fitted = self._fitted()
        chosen = {"observed": fitted.classes_, "outputs": self.outputs, "exponent": self.exponent}
        _, found = metric.topk(self._probabilities(fitted, X), k, **chosen)
        return label_array([metric.labels[i] for i in found.ravel()]).reshape(found.shape)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the negated mean d(prediction, truth)^exponent; higher is better, 0 is perfect.

        :meth:`predict` minimises its expectation, so that ``GridSearchCV`` and the like select for the same
        objective; ``scoring="accuracy"`` selects for accuracy, where ``argmax`` does better.

        Args:
            X: inputs, as for :meth:`predict`.
            y: names of the true labels, (n,).
            sample_weight: non-negative weights of the rows, (n,).

        Raises:
            WeightspaceError: the metric lacks a label of ``y``.
        """
        metric, _ = self._fitted()
        positions = [metric.names.positions_of(labels, "labels in y") for labels in (y, self.predict(X))]
        distances = pair_distances(metric.geometry, *(metric.nodes[places] for places in positions))
        return -float(np.average(distances**self.exponent, weights=sample_weight))

    def _probabilities(self, fitted: Any, X: Any) -> np.ndarray:
        probabilities = np.asarray(fitted.predict_proba(X))
        if not (isinstance(self.temperature, Real) and 0 < self.temperature < np.inf):
            raise WeightspaceError(f"A temperature is a positive number; found {self.temperature!r}.")
        if self.temperature == 1:
            return probabilities
        with np.errstate(divide="ignore"):
            logits = np.log(probabilities) / self.temperature
        return softmax(logits, axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_") or hasattr(self.estimator, "classes_")

    def _fitted(self) -> tuple[LabelMetric, Any]:
        """Return the metric and the fitted estimator.

        Raises:
            NotFittedError: the estimator isn't fitted.
        """
        parts = self._parts()
        check_is_fitted(self)
        return parts

    def _parts(self) -> tuple[LabelMetric, Any]:
        """Return the metric and the fitted estimator, or the unfitted one before ``fit``."""
        if self.metric is None or self.estimator is None:
            raise WeightspaceError("Found no estimator or no metric; expected FrechetClassifier(estimator, metric).")
        if not hasattr(self.estimator, "predict_proba"):
            raise WeightspaceError(
                f"{type(self.estimator).__name__} has no predict_proba; expected a probabilistic classifier "
                "(wrap others in CalibratedClassifierCV)."
            )
        return self.metric, getattr(self, "estimator_", self.estimator)
