"""One number that divides the logits, chosen so that predictions over the metric come nearest to the truth.

Over-flat probabilities make a Fréchet mean worse than argmax: it retreats to the middle of the label space.
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

if TYPE_CHECKING:
    from weightspace.labels.decision import Decision
    from weightspace.labels.label_space import Outputs
    from weightspace.labels.metric import LabelMetric

Objective: TypeAlias = Literal["distance", "nll"]

#: Logits above this may be infinite once they are divided by a small temperature.
_HUGE = 1e300
#: Rows whose predictions at all temperatures are worked out at once.
_ROWS = 1024
#: Temperatures that are tried for the distance, which is a step function, and how far the grid reaches.
_TRIED, _LARGEST = 41, 20.0
#: Temperatures of the smallest loss are looked for between its reciprocal and this.
_EXTREME = 1000.0


def best_temperature(loss: Callable[[float], float]) -> float:
    """Return the temperature of the smallest loss, which has one minimum: a search over its logarithm."""
    end = math.log(_EXTREME)
    found: Any = minimize_scalar(lambda logarithm: loss(math.exp(logarithm)), bounds=(-end, end), method="bounded")
    return math.exp(found.x)


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and what it changes on the data that it was fitted on.

    Attributes:
        temperature: that logits are divided by.
        objective: ``"distance"`` or ``"nll"``.
        before: the objective at temperature 1: mean distance^exponent, or mean −log p of the truth in nats.
        after: the objective at the fitted temperature.
        argmax: mean distance^exponent of ``argmax`` among the observed classes.
        keep_argmax: whether the Fréchet mean is no nearer to the truth than ``argmax`` at the fitted temperature.
        tried: temperatures of the grid, with the objective at each; empty for ``"nll"``.
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
    """Return the temperature that serves predictions best, on validation data that was not trained on.

    Args:
        logits: (n, K), of the observed classes.
        truth: names of the true labels, n; for ``"nll"`` all among the observed.
        metric: over the labels.
        observed: names of the columns.
        outputs: as for ``metric.predict``.
        exponent: as for ``metric.predict``.
        objective: ``"distance"`` takes the least mean d(prediction, truth)^exponent on a grid of temperatures from
            1/20 to 20, of equal ones the nearest to 1; ``"nll"`` the least negative log-likelihood.

    Raises:
        WeightspaceError: shapes do not fit, a label is unknown, or a true label was not observed (``"nll"``).

    Source:
        Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2, for the likelihood.
    """
    rows = checked_logits(logits, len(observed))
    true = metric.names.positions_of(truth, "true labels")
    if len(true) != len(rows) or len(rows) == 0:
        raise WeightspaceError(f"Found {len(rows):,} rows of logits and {len(true):,} true labels; expected as many.")
    if objective not in ("distance", "nll"):
        raise WeightspaceError(f"The objective of a temperature is 'distance' or 'nll'; found {objective!r}.")
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
    """Return the mean cost of predictions at every temperature, tile by tile of the rows."""
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
        WeightspaceError: another shape, or a row without a softmax.
    """
    rows = as_tensor(logits, "Logits").cpu().double()
    if rows.dim() != 2 or rows.shape[1] != columns:
        raise WeightspaceError(f"Logits have shape {tuple(rows.shape)}; expected (n, {columns}), a column a class.")
    largest = rows.amax(1) if len(rows) else rows.new_zeros(0)  # NaN where there is one
    bad = ~((largest > -torch.inf) & (largest < _HUGE))
    if bool(bad.any()):
        raise WeightspaceError(
            f"Row {int(bad.nonzero()[0]):,} of the logits has no softmax: it has a NaN or +inf, or -inf alone."
        )
    return rows


def mean_cost(metric: LabelMetric, found: np.ndarray, true: np.ndarray, exponent: float) -> float:
    """Return the mean d(found, true)^exponent between positions."""
    return float(np.mean(pair_distances(metric.geometry, metric.nodes[found], metric.nodes[true]) ** exponent))


def costs_of_truth(
    metric: LabelMetric, true: np.ndarray, answers: np.ndarray, exponent: float
) -> Callable[[np.ndarray, slice], np.ndarray]:
    """Return what gives d(answer, truth)^exponent for indices into ``answers`` and a slice of the true positions.

    Distances are looked up in a table of the different true labels, where it is small.
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
            f"The true label {metric.labels[missing]!r} was not observed: no likelihood. Use objective='distance'."
        )
    targets = torch.tensor([column[position] for position in true.tolist()])

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(rows / temperature, targets))

    value = best_temperature(loss)
    return value, loss(1.0), loss(value)
