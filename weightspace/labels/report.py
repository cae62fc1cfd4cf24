"""Comparison of the Fréchet mean with argmax and the best constant label on given data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weightspace.errors import WeightspaceError
from weightspace.labels.names import Label
from weightspace.labels.pairs import pair_distances
from weightspace.labels.probabilities import checked_rows

if TYPE_CHECKING:
    from weightspace.labels.label_space import Outputs
    from weightspace.labels.metric import LabelMetric


@dataclass(frozen=True)
class Score:
    """Distance of predictions from the truth.

    Attributes:
        squared_distance: mean d².
        distance: mean d.
        accuracy: fraction of exact predictions.
    """

    squared_distance: float
    distance: float
    accuracy: float


@dataclass(frozen=True)
class DecisionReport:
    """Scores of several decision rules on the same rows.

    Attributes:
        argmax: score of the most probable observed class.
        frechet: score of the label of least expected cost.
        constant: score of the best constant label for these true labels.
        constant_label: name of that label.
        observed_truth: fraction of rows whose true label was observed, an upper bound on the accuracy of argmax.
        moved: fraction of rows in which the Fréchet mean differs from argmax.
        rows: number of rows.
        exponent: exponent of the expected cost.
    """

    argmax: Score
    frechet: Score
    constant: Score
    constant_label: Any
    observed_truth: float
    moved: float
    rows: int
    exponent: float

    @property
    def keep_argmax(self) -> bool:
        """Whether the Fréchet mean is no closer to the truth than argmax in mean squared distance."""
        return self.frechet.squared_distance >= self.argmax.squared_distance

    @property
    def advice(self) -> str:
        """The recommended decision rule, in a sentence."""
        found = f"{self.frechet.squared_distance:.4g} against {self.argmax.squared_distance:.4g} mean squared distance"
        if self.keep_argmax:
            return f"Keep argmax: the Fréchet mean is no nearer to the truth, {found}. A fitted temperature may help."
        gain = f"The Fréchet mean is nearer to the truth, {found}"
        lost = self.argmax.accuracy - self.frechet.accuracy
        price = f", at {100 * lost:.1f} percentage points of accuracy" if lost > 0 else ""
        if self.constant.squared_distance <= self.frechet.squared_distance:
            return (
                f"{gain}{price}; but the constant {self.constant_label!r} is as near "
                f"({self.constant.squared_distance:.4g}): the classifier adds nothing on this metric."
            )
        return f"{gain}{price}."


def decision_report(
    probabilities: Any,
    truth: Sequence[Label],
    *,
    metric: LabelMetric,
    observed: Sequence[Label],
    outputs: Outputs = "all",
    exponent: float = 2,
) -> DecisionReport:
    """Compare argmax, the Fréchet mean and the best constant label.

    Args:
        probabilities: (n, K), one column per observed class.
        truth: names of the n true labels, in the metric.
        metric: label metric.
        observed: names of the columns.
        outputs: as for ``metric.predict``; the constant label is one of them.
        exponent: exponent of the Fréchet mean; scores always use d and d².

    Raises:
        WeightspaceError: as for ``metric.predict``, or the numbers of true labels and rows differ.
    """
    rows = checked_rows(probabilities, len(observed))
    true = metric.names.positions_of(truth, "true labels")
    if len(true) != len(rows) or len(rows) == 0:
        raise WeightspaceError(
            f"Found {len(rows):,} rows of probabilities and {len(true):,} true labels; expected equal numbers."
        )
    seen = metric.names.positions(observed, "observed classes")
    frechet = metric.predict(rows, observed=observed, outputs=outputs, exponent=exponent)
    plain = seen[rows.argmax(-1).cpu().numpy()]
    classes, counts = np.unique(true, return_counts=True)
    weights = torch.from_numpy(counts[None].astype(np.float64))
    constant = metric.predict(weights, observed=[metric.labels[i] for i in classes], outputs=outputs)

    def score(found: np.ndarray) -> Score:
        distance = pair_distances(metric.geometry, metric.nodes[found], metric.nodes[true])
        return Score(float(np.mean(distance**2)), float(distance.mean()), float((found == true).mean()))

    return DecisionReport(
        argmax=score(plain),
        frechet=score(frechet),
        constant=score(np.broadcast_to(constant, true.shape)),
        constant_label=metric.labels[int(constant[0])],
        observed_truth=float(np.isin(true, seen).mean()),
        moved=float((plain != frechet).mean()),
        rows=len(rows),
        exponent=exponent,
    )
