"""The noise of a gain on validation data: a bootstrap over parts of the data that both networks are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightspace.checkpoints import StateDict
from weightspace.soups.measures import TaskMeasure
from weightspace.tasks.parts import count_validation, part_of
from weightspace.tasks.protocol import objective_value
from weightspace.tasks.scores import scores_of

#: Number of parts, and of resamples.
_PARTS, _RESAMPLES = 40, 4_000
#: Percentiles of a 95 % interval.
_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Gain:
    """The gain of a network over another on the validation split of a task, in units of the objective.

    Attributes:
        value: the gain; positive is better.
        low, high: its 95 % bootstrap interval.
    """

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains a gain of 0."""
        return self.low <= 0


def gain_over(
    measure: TaskMeasure, best: tuple[StateDict, bool], other: tuple[StateDict, bool], *, seed: int
) -> Gain | None:
    """Return the gain of a network over another; None if the task has no ``part`` or too few examples.

    Args:
        measure: the task, whose network is used.
        best, other: the networks, each with whether it is a mixture.
        seed: seed of the resamples.
    """
    count = count_validation(measure.task)
    parts = min(_PARTS, count)
    if parts < 2 or part_of(measure.task, 0, parts) is None:
        return None
    differences = np.subtract(_by_part(measure, *best, parts), _by_part(measure, *other, parts))
    sizes = np.array([len(range(index, count, parts)) for index in range(parts)])
    drawn = np.random.default_rng(seed).integers(parts, size=(_RESAMPLES, parts))
    means = (differences * sizes)[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, (_LOW, _HIGH))
    return Gain(float(np.average(differences, weights=sizes)), float(low), float(high))


def _by_part(measure: TaskMeasure, state: StateDict, mixed: bool, parts: int) -> Sequence[float]:
    """Return a network's objective on every part of the validation split, higher is better."""
    scorer = measure.scorer()
    network = scorer.put(scorer.fitted(state, "the network").items(), mixed=mixed)
    found = []
    for index in range(parts):
        part = part_of(measure.task, index, parts)
        if part is not None:
            found.append(objective_value(measure.task, scores_of(part, network, "validation"), measure.mode))
    return found
