"""Prior shift: probabilities for a place where the classes are more or less frequent than in training.

Only the frequencies of the classes are different there, and what each class looks like is as it was: ``p(x|y)`` is the
same, ``p(y)`` is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.probabilities import checked_rows

#: Steps of expectation maximisation, at most, and the change of a frequency at which it has come to rest.
_STEPS, _REST = 10_000, 1e-10


def shift_priors(probabilities: Any, old: Any, new: Any) -> np.ndarray:
    r"""Return the probabilities under new class frequencies, :math:`p'(y|x) \propto p(y|x)\, \pi'_y / \pi_y`.

    Args:
        probabilities: (..., K), calibrated under the old frequencies; not negative. Not changed.
        old: frequencies of the classes that the classifier was trained on, K, positive; counts will do.
        new: frequencies where it is used, K, not negative; counts will do.

    Returns:
        float64 (..., K); rows sum to one.

    Raises:
        WeightspaceError: another shape, a frequency that is none, or a row whose classes have no frequency there.

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
        raise WeightspaceError(f"Found {len(before):,} old frequencies and {len(after):,} new ones; expected as many.")
    rows = checked_rows(probabilities, len(before)).cpu().double().numpy()
    weighted = rows * (after / before)
    sums = weighted.sum(1, keepdims=True)
    if bad := np.flatnonzero(~(sums[:, 0] > 0)).tolist():
        raise WeightspaceError(
            f"Row {bad[0]:,} has probability for classes alone whose new frequency is 0; expected one that can occur."
        )
    return (weighted / sums).reshape(np.shape(probabilities))


@dataclass(frozen=True)
class EstimatedPriors:
    """Class frequencies, estimated.

    Attributes:
        frequencies: K, float64, they sum to one.
        steps: of expectation maximisation.
        converged: whether it came to rest.
    """

    frequencies: np.ndarray
    steps: int
    converged: bool


def estimate_priors(probabilities: Any, old: Any) -> EstimatedPriors:
    r"""Return the class frequencies under which unlabelled data are most likely, by expectation maximisation.

    :math:`\pi'_y \leftarrow \frac{1}{n} \sum_i p'(y|x_i)` with the probabilities of :func:`shift_priors`, until
    nothing changes. Probabilities have to be calibrated.

    Args:
        probabilities: (n, K) of data from where the classifier is used.
        old: frequencies of the classes that it was trained on, K, positive; counts will do.

    Raises:
        WeightspaceError: another shape, or a frequency that is none.

    Source:
        Saerens, Latinne and Decaestecker 2002, https://doi.org/10.1162/089976602753284446, equation 2.9.

    Example:
        >>> estimate_priors([[1.0, 0.0]] * 3 + [[0.0, 1.0]], old=[0.5, 0.5]).frequencies.tolist()
        [0.75, 0.25]
    """
    before = class_frequencies(old, "old", positive=True)
    rows = checked_rows(probabilities, len(before)).cpu().double().numpy()
    if not len(rows):
        raise WeightspaceError("Found no rows of probabilities; expected one at least.")
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
    """Return frequencies that sum to one, float64 (K,).

    Raises:
        WeightspaceError: they are no vector of numbers of zero or more (or positive ones), with a sum.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise WeightspaceError(
            f"The {which} frequencies are a vector of numbers of zero or more, one a class, not all zero; found "
            f"{values!r:.80}."
        )
    if positive and not (found > 0).all():
        raise WeightspaceError(
            f"The {which} frequency of class {int(np.flatnonzero(found == 0)[0]):,} is 0; expected positive ones: a "
            "classifier says nothing of a class that it never saw."
        )
    return found / found.sum()
