"""Prior shift: probabilities for deployment data whose class frequencies differ from those in training.

Only the class frequencies ``p(y)`` change; the appearance of each class, ``p(x|y)``, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.probabilities import checked_rows

#: Maximum number of EM steps, and the change of a frequency below which EM has converged.
_STEPS, _REST = 10_000, 1e-10


def shift_priors(probabilities: Any, old: Any, new: Any) -> np.ndarray:
    r"""Return the probabilities under new class frequencies, :math:`p'(y|x) \propto p(y|x)\, \pi'_y / \pi_y`.

    Args:
        probabilities: (..., K), calibrated under the old frequencies; non-negative. Not modified.
        old: frequencies of the K classes in training, positive; counts are accepted.
        new: frequencies of the K classes in deployment, non-negative; counts are accepted.

    Returns:
        Probabilities, float64 (..., K); rows sum to one.

    Raises:
        WeightspaceError: a wrong shape, an invalid frequency, or a row whose classes all have new frequency zero.

    Source:
        Saerens, Latinne and Decaestecker 2002, https://doi.org/10.1162/089976602753284446, equation 2.4; Elkan 2001,
        https://www.ijcai.org/Proceedings/01/IJCAI01-132.pdf, theorem 2.

    Example:
        >>> shift_priors([[0.5, 0.5]], old=[0.5, 0.5], new=[0.9, 0.1]).round(3).tolist()
        [[0.9, 0.1]]
    """
    before = class_frequencies(old, "old", positive=True)
    after = class_frequencies(new, "new")
    if len(before) != len(after):
        raise WeightspaceError(
            f"Found {len(before):,} old frequencies and {len(after):,} new ones; expected equal numbers."
        )
    rows = checked_rows(probabilities, len(before)).cpu().double().numpy()
    weighted = rows * (after / before)
    sums = weighted.sum(1, keepdims=True)
    if bad := np.flatnonzero(~(sums[:, 0] > 0)).tolist():
        raise WeightspaceError(
            f"Row {bad[0]:,} gives probability only to classes with new frequency 0; expected a class that can occur."
        )
    return (weighted / sums).reshape(np.shape(probabilities))


@dataclass(frozen=True)
class EstimatedPriors:
    """Estimated class frequencies.

    Attributes:
        frequencies: frequencies of the K classes, float64 (K,); they sum to one.
        steps: number of EM steps.
        converged: whether EM converged.
    """

    frequencies: np.ndarray
    steps: int
    converged: bool


def estimate_priors(probabilities: Any, old: Any) -> EstimatedPriors:
    r"""Return the class frequencies that maximise the likelihood of unlabelled data, by expectation maximisation (EM).

    Iterates :math:`\pi'_y \leftarrow \frac{1}{n} \sum_i p'(y|x_i)` with the probabilities of :func:`shift_priors` until
    convergence. Probabilities must be calibrated.

    Args:
        probabilities: (n, K) of deployment data.
        old: frequencies of the K classes in training, positive; counts are accepted.

    Raises:
        WeightspaceError: a wrong shape, or an invalid frequency.

    Source:
        Saerens, Latinne and Decaestecker 2002, https://doi.org/10.1162/089976602753284446, equation 2.9.

    Example:
        >>> estimate_priors([[1.0, 0.0]] * 3 + [[0.0, 1.0]], old=[0.5, 0.5]).frequencies.tolist()
        [0.75, 0.25]
    """
    before = class_frequencies(old, "old", positive=True)
    rows = checked_rows(probabilities, len(before)).cpu().double().numpy()
    if not len(rows):
        raise WeightspaceError("Found no rows of probabilities; expected at least one.")
    likelihoods = rows / rows.sum(1, keepdims=True) / before
    current = before
    for step in range(1, _STEPS + 1):
        weighted = likelihoods * current
        following = (weighted / weighted.sum(1, keepdims=True)).mean(0)
        if np.abs(following - current).max() < _REST:
            return EstimatedPriors(following, step, True)
        current = following
    return EstimatedPriors(current, _STEPS, False)


def class_frequencies(values: Any, which: str, *, positive: bool = False) -> np.ndarray:
    """Return frequencies normalised to sum to one, float64 (K,).

    Raises:
        WeightspaceError: they aren't a vector of non-negative (or positive) numbers with a positive sum.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise WeightspaceError(
            f"The {which} frequencies must be a vector of non-negative numbers, one per class, not all zero; found "
            f"{values!r:.80}."
        )
    if positive and not (found > 0).all():
        raise WeightspaceError(
            f"The {which} frequency of class {int(np.flatnonzero(found == 0)[0]):,} is 0; expected positive ones, as a "
            "classifier says nothing about a class that it has never seen."
        )
    return found / found.sum()
