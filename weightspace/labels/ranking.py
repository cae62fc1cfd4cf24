"""Top-k labels by expected cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.probabilities import checked_rows

if TYPE_CHECKING:
    from weightspace.labels.decision import Decision


def least_costs(decision: Decision, probabilities: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` least expected costs, ascending, float64 (..., k), and their positions, int64 (..., k).

    Args:
        decision: decision of the metric.
        probabilities: (..., K).
        k: number of labels; ties are in order of position.

    Raises:
        WeightspaceError: there are fewer outputs, or as for ``LabelMetric.predict``.
    """
    if not isinstance(k, int) or not 1 <= k <= len(decision.outputs):
        raise WeightspaceError(f"Found k={k!r}; expected 1 to {len(decision.outputs):,}, the number of outputs.")
    rows = checked_rows(probabilities, len(decision.observed))
    by_position = np.argsort(decision.outputs, kind="stable")
    costs, places = np.empty((len(rows), k)), np.empty((len(rows), k), dtype=np.int64)
    for start in range(0, len(rows), decision.rule.tile):
        here = slice(start, start + decision.rule.tile)
        found = decision.expected_cost(rows[here])[:, by_position]
        best = np.argsort(found, axis=1, kind="stable")[:, :k]
        costs[here], places[here] = np.take_along_axis(found, best, 1), decision.outputs[by_position][best]
    leading = tuple(np.shape(probabilities))[:-1]
    return costs.reshape(*leading, k), places.reshape(*leading, k)
