"""Decisions: a metric with chosen classes, which predicts from arrays and underlies the heads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.label_space import LabelSpace, Outputs
from weightspace.labels.names import Label
from weightspace.labels.probabilities import checked_rows, scaled_rows
from weightspace.labels.rules.powers import check_exponent
from weightspace.labels.rules.rule import Rule

#: Makes a rule for distinct places.
Make = Callable[[np.ndarray, np.ndarray], Rule]


class SharedPlaces(Rule):
    """A rule for labels of which several may share a place, by a rule for the places.

    Args:
        observed: place of each observed label.
        outputs: place of each output.
        make: makes the rule for distinct observed places and distinct outputs.
    """

    column: Tensor
    place: Tensor
    first: Tensor

    def __init__(self, observed: np.ndarray, outputs: np.ndarray, make: Make) -> None:
        super().__init__()
        seen, column = np.unique(observed, return_inverse=True)
        _, first, place = np.unique(outputs, return_index=True, return_inverse=True)
        by_label = np.argsort(first)  # places in order of their first labels, so that ties go to the lowest
        rank = np.empty_like(by_label)
        rank[by_label] = np.arange(len(by_label))
        self.rule = make(seen, outputs[np.sort(first)])
        self.outputs, self.width, self.places = len(outputs), max(self.rule.width, len(outputs)), len(seen)
        self.table("column", column)
        self.table("place", rank[place])
        self.table("first", np.sort(first))

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        return self.rule.costs(self._added(weights)).index_select(1, self.place)

    def decide(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        return self.first[self.rule.decide(self._added(weights))]

    def _added(self, weights: Tensor) -> Tensor:
        """Return the weight of each place, float64 (B, places)."""
        wide = weights.double()
        return wide.new_zeros((wide.shape[0], self.places)).index_add(1, self.column, wide)


def rule_among(observed: np.ndarray, outputs: np.ndarray, make: Make) -> Rule:
    """Return the rule for labels at places that may repeat."""
    different = all(len(np.unique(places)) == len(places) for places in (observed, outputs))
    return make(observed, outputs) if different else SharedPlaces(observed, outputs, make)


#: Number of decisions cached for later calls with the same classes.
_KEPT = 4


@dataclass(frozen=True)
class Decision:
    """A rule together with the labels that its indices stand for.

    Attributes:
        metric: the label space.
        observed: positions of the columns in ``metric.labels``, int64.
        outputs: positions that can be predicted, in the requested order, int64.
        rule: decides among the outputs in order of position.
    """

    metric: LabelSpace
    observed: np.ndarray
    outputs: np.ndarray
    rule: Rule

    @classmethod
    def make(cls, metric: LabelSpace, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Decision:
        """Return the decision for positions in the metric.

        Raises:
            WeightspaceError: nothing is observed, or the exponent isn't a positive number.
        """
        if len(observed) == 0:
            raise WeightspaceError("There are no observed classes; expected at least one.")
        check_exponent(exponent)
        places = metric.nodes[observed], metric.nodes[np.sort(outputs)]
        rule = rule_among(*places, lambda seen, named: metric.geometry.rule(seen, named, exponent))
        return cls(metric, observed, outputs, rule)

    @cached_property
    def answers(self) -> np.ndarray:
        """The positions in ``metric.labels`` of the rule's indices, ascending."""
        return np.sort(self.outputs)

    @cached_property
    def plain(self) -> bool:
        """Whether all labels can be predicted, so that the rule's indices are positions."""
        return len(self.outputs) == len(self.metric)

    @cached_property
    def order(self) -> np.ndarray:
        """The rule's index of each output, in the requested order."""
        return np.searchsorted(self.answers, self.outputs)

    def predict(self, probabilities: Any) -> np.ndarray:
        """Return positions in ``metric.labels``, int64 (...), for probabilities (..., K), computed on their device."""
        rows, _ = scaled_rows(checked_rows(probabilities, len(self.observed)))
        with torch.no_grad():
            found = self.rule.to(rows.device).decide(rows).cpu().numpy()
        positions = found if self.plain else self.answers[found]
        return positions.reshape(_leading(probabilities))

    def expected_cost(self, probabilities: Any) -> np.ndarray:
        """Return the expected costs, float64 (..., outputs), computed on the device of the probabilities.

        Raises:
            WeightspaceError: the weights are so large that a cost overflows.
        """
        rows, exponents = scaled_rows(checked_rows(probabilities, len(self.observed)))
        found, rule = np.empty((len(rows), len(self.outputs))), self.rule.to(rows.device)
        with torch.no_grad():
            for start in range(0, len(rows), rule.tile):
                costs: Tensor = rule.costs(rows[start : start + rule.tile])
                found[start : start + rule.tile] = costs.cpu().numpy()[:, self.order]
        if exponents is not None:
            with np.errstate(over="ignore"):
                found = np.ldexp(found, exponents)
            if not np.isfinite(found).all():
                row = int((~np.isfinite(found)).any(1).argmax())
                raise WeightspaceError(
                    f"The expected costs of row {row:,} leave the range of float64; scale the row down."
                )
        return found.reshape(*_leading(probabilities), len(self.outputs))


def kept_decision(
    metric: LabelSpace,
    kept: OrderedDict[Any, Decision],
    observed: Sequence[Label],
    outputs: Outputs,
    exponent: float,
) -> Decision:
    """Return the metric's decision for these classes, from a cache of the most recent ones."""
    seen, named = positions_of(metric, observed, outputs)
    key = (seen.tobytes(), named.tobytes(), float(exponent) if isinstance(exponent, int | float) else exponent)
    if key not in kept:
        kept[key] = Decision.make(metric, seen, named, exponent)
        while len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def positions_of(metric: LabelSpace, observed: Sequence[Label], outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the observed classes and of the outputs.

    Raises:
        WeightspaceError: a name is unknown, or there are no outputs.
    """
    seen = metric.names.positions(observed, "observed classes")
    if isinstance(outputs, str):
        if outputs not in ("all", "observed"):
            raise WeightspaceError(f"Outputs must be 'all', 'observed' or a list of names; found {outputs!r}.")
        return seen, seen if outputs == "observed" else np.arange(len(metric))
    named = metric.names.positions(outputs, "outputs")
    if not len(named):
        raise WeightspaceError("There are no outputs; expected at least one label.")
    return seen, named


def _leading(probabilities: Any) -> tuple[int, ...]:
    return tuple(np.shape(probabilities) if not isinstance(probabilities, Tensor) else probabilities.shape)[:-1]
