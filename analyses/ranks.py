"""Mean ranks of methods over blocks, and the difference from which two of them differ (Friedman, Nemenyi).

Source:
    Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, section 3.2.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range


@dataclass(frozen=True)
class Ranks:
    """Ranks of methods.

    Attributes:
        means: label -> mean rank over the blocks, 1 for the best; equal scores share the mean of their ranks.
        blocks: number of blocks.
        p_value: of Friedman's test that all methods are alike; NaN for fewer than three methods.
        critical: Nemenyi's critical difference of two mean ranks at the level of .05.
    """

    means: Mapping[str, float]
    blocks: int
    p_value: float
    critical: float

    @property
    def near_best(self) -> tuple[str, ...]:
        """Labels of the methods whose mean rank does not differ from the best one, the best first."""
        ordered = sorted(self.means, key=lambda label: (self.means[label], label))
        return tuple(label for label in ordered if self.means[label] - self.means[ordered[0]] < self.critical)


def ranks_of(scores: Mapping[str, Sequence[float]]) -> Ranks:
    """Rank methods by their scores in every block.

    Args:
        scores: label -> one score per block, higher is better; at least two labels, and a block.
    """
    labels, table = list(scores), np.array(list(scores.values()), dtype=float).T
    each = rankdata(-table, axis=1)
    blocks, count = table.shape
    enough = count > 2 and blocks > 1 and bool((table != table[:, :1]).any())
    p_value = float(friedmanchisquare(*table.T).pvalue) if enough else math.nan
    return Ranks(
        dict(zip(labels, each.mean(axis=0).tolist(), strict=True)), blocks, p_value, critical_difference(count, blocks)
    )


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Return Nemenyi's critical difference of mean ranks: ``q √(k (k + 1) / 6 N)`` of ``k`` methods on ``N`` blocks."""
    q = float(studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))
