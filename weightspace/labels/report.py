"""Report on the Fréchet mean of given data, beside argmax and the best constant label."""

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
    """How near predictions are to the truth.

    Attributes:
        squared_distance: mean d².
        distance: mean d.
        accuracy: share of exact predictions.
    """

    squared_distance: float
    distance: float
    accuracy: float


@dataclass(frozen=True)
class DecisionReport:
    """Ways to decide, side by side on the same rows.

    Attributes:
        argmax: the most probable observed class.
        frechet: the label of least expected cost.
        constant: the same label for every row, the best one for these true labels.
        constant_label: its name.
        observed_truth: share of rows whose true label was observed: argmax cannot be right more often.
        moved: share of rows in which the Fréchet mean isn't the argmax.
        rows: how many there are.
        exponent: of the expected cost.
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
        """Whether the Fréchet mean is no nearer to the truth, in mean squared distance, than argmax."""
        return self.frechet.squared_distance >= self.argmax.squared_distance

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        found = f"{self.frechet.squared_distance:.4g} against {self.argmax.squared_distance:.4g} mean squared distance"
        if self.keep_argmax:
            return f"Keep argmax: the Fréchet mean is no nearer to the truth, {found}. A fitted temperature may help."
        gain = f"The Fréchet mean is nearer to the truth, {found}"
        lost = self.argmax.accuracy - self.frechet.accuracy
        price = f", at {100 * lost:.1f} points of accuracy" if lost > 0 else ""
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
    """Return argmax, Fréchet mean and the best constant label side by side.

    Args:
        probabilities: (n, K), of the observed classes.
        truth: names of the true labels, n, in the metric.
        metric: over the labels.
        observed: names of the columns.
        outputs: as for ``metric.predict``; the constant is one of them.
        exponent: of the Fréchet mean; scores are always of d and d².

    Raises:
        WeightspaceError: as ``metric.predict``, or another number of true labels than rows.
    """
    rows = checked_rows(probabilities, len(observed))
    true = metric.names.positions_of(truth, "true labels")
    if len(true) != len(rows) or len(rows) == 0:
        raise WeightspaceError(
            f"Found {len(rows):,} rows of probabilities and {len(true):,} true labels; expected as many."
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
