"""Barriers: how much worse the networks between two endpoints are.

A positive barrier is bad for either score: a rise of the loss, a drop of the accuracy. It is never clipped, so a curve
below its endpoints has a negative (or zero) barrier.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np

from weightspace.arguments import checked
from weightspace.connectivity.loss_curve import Curve
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

Baseline: TypeAlias = Literal["linear", "mean"]
Score: TypeAlias = Literal["loss", "accuracy"]


@checked
def barrier(curve: Curve, *, baseline: Baseline = "linear", score: Score = "loss") -> float:
    """Return the largest rise of the loss above the straight line between its endpoints.

    ``max_λ L(λ) − [(1−λ) L(0) + λ L(1)]`` over the positions, endpoints included; NaN if a score is NaN.

    Args:
        curve: scores at ``S`` positions that increase from 0 to 1.
        baseline: ``"linear"`` interpolates the endpoint losses; ``"mean"`` averages them, as Git Re-Basin does.
        score: ``"loss"`` (nats), or ``"accuracy"``: the largest drop below the baseline (a fraction).

    Raises:
        WeightspaceError: fewer than three positions, positions that don't increase from 0 to 1, or no accuracy.

    Source:
        Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2; Ainsworth et al. 2023,
        https://arxiv.org/abs/2209.04836, definition 2.1.

    Example:
        >>> import weightspace as ws
        >>> curve = ws.Curve(positions=(0, 0.5, 1), loss=(0.25, 1.25, 0.75))
        >>> ws.barrier(curve)
        0.75
    """
    for kind, found, known in (("baseline", baseline, Baseline), ("score", score, Score)):
        if found not in get_args(known):
            raise unknown(kind, found, get_args(known))
    if score == "accuracy" and curve.accuracy is None:
        raise WeightspaceError(f"The curve of {curve.task or 'this task'!r} has no accuracy; use score='loss'.")
    positions = _checked_positions(curve)
    rise = np.array(curve.loss) if curve.accuracy is None or score == "loss" else -np.array(curve.accuracy)
    if baseline == "linear":
        level = (1 - positions) * rise[0] + positions * rise[-1]
    else:
        level = (rise[0] + rise[-1]) / 2
    return float(np.max(rise - level))


def _checked_positions(curve: Curve) -> np.ndarray:
    """Return the positions after checking that there are at least three, increasing from 0 to 1."""
    positions = np.array(curve.positions)
    if len(positions) < 3:
        raise WeightspaceError(
            f"A barrier needs at least three points, the endpoints and one in between; found {len(positions)}."
        )
    if positions[0] != 0 or positions[-1] != 1 or not np.all(np.diff(positions) > 0):
        raise WeightspaceError(
            "A barrier needs positions that increase from 0 to 1; found "
            f"{', '.join(f'{position:g}' for position in curve.positions)}."
        )
    return positions
