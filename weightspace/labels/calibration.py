"""Temperature scaling: one divisor of the logits that brings predictions over the metric closest to the truth.

If the probabilities are too flat, the Fréchet mean is worse than argmax: it retreats to the middle of the label space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.names import Label
from weightspace.labels.pairs import pair_distances
from weightspace.labels.probabilities import as_tensor
from weightspace.labels.rules.chunked import KEPT
from weightspace.reprs import brief

if TYPE_CHECKING:
    from weightspace.labels.decision import Decision
    from weightspace.labels.label_space import Outputs
    from weightspace.labels.metric import LabelMetric

Objective: TypeAlias = Literal["distance", "nll"]

#: Logits above this may overflow when divided by a small temperature.
_HUGE = 1e300
#: Rows that are predicted at once, at all temperatures.
_ROWS = 1024
#: Number of temperatures in the grid for the distance, which is a step function, and the largest of them.
_TRIED, _LARGEST = 41, 20.0
#: Largest temperature in the search for the smallest loss; its reciprocal is the smallest.
_EXTREME = 1000.0


def best_temperature(loss: Callable[[float], float]) -> float:
    """Return the temperature that minimises a unimodal loss, by a bounded search over its logarithm."""
    end = math.log(_EXTREME)
    found: Any = minimize_scalar(lambda logarithm: loss(math.exp(logarithm)), bounds=(-end, end), method="bounded")
    return math.exp(found.x)


@brief
@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature and its effect on the data that it was fitted to.

    Attributes:
        temperature: divisor of the logits.
        objective: ``"distance"`` or ``"nll"``.
        before: the objective at temperature 1: mean distance^exponent, or mean −log p of the truth in nats.
        after: the objective at the fitted temperature.
        argmax: mean distance^exponent of ``argmax`` over the observed classes.
        keep_argmax: whether the Fréchet mean at the fitted temperature is no closer to the truth than ``argmax``.
        tried: pairs of a grid temperature and its objective; empty for ``"nll"``.
    """

    temperature: float
    objective: str
    before: float
    after: float
    argmax: float
    keep_argmax: bool
    tried: tuple[tuple[float, float], ...] = ()


def fit_temperature(
    logits: Any,
    truth: Sequence[Label],
    *,
    metric: LabelMetric,
    observed: Sequence[Label],
    outputs: Outputs = "all",
    exponent: float = 2,
    objective: Objective = "distance",
) -> TemperatureFit:
    """Fit the temperature that gives the best predictions on held-out validation data.

    Args:
        logits: (n, K), one column per observed class.
        truth: names of the n true labels; for ``"nll"``, all of them observed.
        metric: label metric.
        observed: names of the columns.
        outputs: as for ``metric.predict``.
        exponent: as for ``metric.predict``.
        objective: ``"distance"`` minimises the mean d(prediction, truth)^exponent on a grid of temperatures from 1/20
            to 20 (ties go to the one nearest to 1); ``"nll"`` minimises the negative log-likelihood.

    Raises:
        WeightspaceError: shapes do not match, a label is unknown, or a true label was not observed (``"nll"``).

    Source:
        Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2, for the likelihood.
    """
    rows = checked_logits(logits, len(observed))
    true = metric.names.positions_of(truth, "true labels")
    if len(true) != len(rows) or len(rows) == 0:
        raise WeightspaceError(
            f"Found {len(rows):,} rows of logits and {len(true):,} true labels; expected equal numbers."
        )
    if objective not in ("distance", "nll"):
        raise WeightspaceError(f"The objective must be 'distance' or 'nll'; found {objective!r}.")
    seen = metric.names.positions(observed, "observed classes")
    decision = metric.decision(observed=observed, outputs=outputs, exponent=exponent)
    cost = costs_of_truth(metric, true, decision.answers, exponent)
    plain = mean_cost(metric, seen[rows.argmax(-1).numpy()], true, exponent)
    if objective == "nll":
        value, before, after = _by_likelihood(rows, seen, true, metric)
        return TemperatureFit(
            value, objective, before, after, plain, _mean_costs(decision, rows, cost, [value])[0] >= plain
        )
    temperatures = [math.exp(x) for x in np.linspace(-math.log(_LARGEST), math.log(_LARGEST), _TRIED)]
    *costs, before = _mean_costs(decision, rows, cost, [*temperatures, 1.0])
    tried = tuple(zip(temperatures, costs, strict=True))
    value, after = min(tried, key=lambda pair: (pair[1], abs(math.log(pair[0]))))
    return TemperatureFit(value, objective, before, after, plain, after >= plain, tried)


def _mean_costs(
    decision: Decision, rows: Tensor, cost: Callable[[np.ndarray, slice], np.ndarray], temperatures: Sequence[float]
) -> list[float]:
    """Return the mean cost of the predictions at each temperature, processing the rows in tiles."""
    totals = np.zeros(len(temperatures))
    for start in range(0, len(rows), _ROWS):
        tile = slice(start, start + _ROWS)
        for index, temperature in enumerate(temperatures):
            found = decision.rule.decide(torch.softmax(rows[tile] / temperature, -1))
            totals[index] += cost(found.numpy(), tile).sum()
    return (totals / len(rows)).tolist()


def checked_logits(logits: Any, columns: int) -> Tensor:
    """Return logits as float64 (n, columns) on the CPU.

    Raises:
        WeightspaceError: a wrong shape, or a row whose softmax is undefined.
    """
    rows = as_tensor(logits, "Logits").cpu().double()
    if rows.dim() != 2 or rows.shape[1] != columns:
        raise WeightspaceError(f"Logits have shape {tuple(rows.shape)}; expected (n, {columns}), one column per class.")
    largest = rows.amax(1) if len(rows) else rows.new_zeros(0)  # NaN if the row holds one
    bad = ~((largest > -torch.inf) & (largest < _HUGE))
    if bool(bad.any()):
        raise WeightspaceError(
            f"Row {int(bad.nonzero()[0]):,} of the logits has no softmax: it holds NaN or +inf, or only -inf."
        )
    return rows


def mean_cost(metric: LabelMetric, found: np.ndarray, true: np.ndarray, exponent: float) -> float:
    """Return the mean d(found, true)^exponent between positions."""
    return float(np.mean(pair_distances(metric.geometry, metric.nodes[found], metric.nodes[true]) ** exponent))


def costs_of_truth(
    metric: LabelMetric, true: np.ndarray, answers: np.ndarray, exponent: float
) -> Callable[[np.ndarray, slice], np.ndarray]:
    """Return a function from indices into ``answers`` and a slice of the true positions to d(answer, truth)^exponent.

    It looks distances up in a table of the distinct true labels if that is small.
    """
    labels, which = np.unique(true, return_inverse=True)
    if 8 * len(labels) * len(answers) > KEPT:
        nodes = metric.nodes
        return lambda found, rows: pair_distances(metric.geometry, nodes[answers[found]], nodes[true[rows]]) ** exponent
    table = metric.geometry.distances(metric.nodes[answers], metric.nodes[labels]) ** exponent
    return lambda found, rows: table[found, which[rows]]


def _by_likelihood(rows: Tensor, seen: np.ndarray, true: np.ndarray, metric: LabelMetric) -> tuple[float, float, float]:
    column = {position: index for index, position in enumerate(seen.tolist())}
    missing = next((position for position in true.tolist() if position not in column), None)
    if missing is not None:
        raise WeightspaceError(
            f"True label {metric.labels[missing]!r} was not observed and has no likelihood. Use objective='distance'."
        )
    targets = torch.tensor([column[position] for position in true.tolist()])

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(rows / temperature, targets))

    value = best_temperature(loss)
    return value, loss(1.0), loss(value)
