r"""Soup versus ensemble: predict which of the two is better without running the ensemble.

With :math:`\theta_\alpha = (1-\alpha)\theta_0 + \alpha\theta_1` and logits scaled by :math:`\beta`,

.. math:: L_\text{soup} - L_\text{ens} \approx \frac{\alpha(1-\alpha)}{2} \left[ -\frac{d^2 L_\text{soup}}{d\alpha^2}
    + \beta^2 E_x \mathrm{Var}_{Y \sim \mathrm{softmax}(\beta f(x;\theta_\alpha))}
    (f_Y(x;\theta_1) - f_Y(x;\theta_0)) \right].

Order and sign are reliable for fine-tunes of one model; the magnitude is only approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weightspace.connectivity.temperature import fit_temperature
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief
from weightspace.soups.candidates import OnLine
from weightspace.soups.ensemble import hearing, nth, recording, scaling
from weightspace.soups.ingredients import Ingredient, Source, check_ingredients, ingredients_of
from weightspace.soups.scoring import Scorer, Statistics
from weightspace.tasks.protocol import Split, Task

#: Step of the finite second difference in the position.
STEP = 0.1


@brief
@dataclass(frozen=True)
class SoupAgainstEnsemble:
    """A soup of two networks compared with their ensemble; losses in nats.

    Attributes:
        position: ``α``, the position of the soup between the two, and the weight of the second network in the ensemble.
        soup: loss of the soup, with logits scaled by ``scale``.
        ensemble: loss of the mean of the logits, scaled likewise.
        predicted: prediction of ``soup − ensemble`` by the equation.
        curvature: ``d² L_soup / dα²``.
        variance: ``E_x Var_Y`` of the difference of the two networks' logits, without ``β``.
        scale: ``β``; the calibrated temperature of the soup on validation data is ``1 / β``.
    """

    position: float
    soup: float
    ensemble: float
    predicted: float
    curvature: float
    variance: float
    scale: float

    @property
    def difference(self) -> float:
        """``soup − ensemble``, negative if the soup is better."""
        return self.soup - self.ensemble


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with true differences: Pearson correlation, and the fraction of equal signs."""

    correlation: float
    sign: float
    pairs: int


def soup_against_ensemble(
    a: Source,
    b: Source,
    task: Task,
    *,
    position: float = 0.5,
    scale: float | None = None,
    split: Split = "test",
    statistics: Statistics = "auto",
) -> SoupAgainstEnsemble:
    """Score the soup of two networks and their ensemble, and predict the difference of their losses.

    Args:
        a: state dict or checkpoint at position 0.
        b: state dict or checkpoint at position 1; both are fine-tunes of one model.
        task: classification task with a cross-entropy ``loss`` among its scores, whose network returns logits
            ``(n, classes)`` and which scores on the same batches each time.
        position: ``α``, strictly between 0 and 1.
        scale: ``β``; by default, the one that calibrates the soup on validation data.
        split: data for the losses.
        statistics: BatchNorm statistics between the two; see ``greedy_soup``.

    Raises:
        CheckpointError: a checkpoint cannot be read, or doesn't match the task's network.
        WeightspaceError: the position isn't between 0 and 1, the scores have no loss, or there are no logits.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 4, equation 1.
    """
    if not 0 < position < 1:
        raise WeightspaceError(f"The position of a soup must be strictly between 0 and 1; found {position}.")
    scorer = Scorer(task, statistics)
    first, second = ingredients_of([a, b], scorer.shapes)
    pair = _Pair(first, second, scorer, split)
    check_ingredients((first, second), pair.scorer.check)
    if scale is None:
        pair.put(position)
        scale = 1 / fit_temperature(task, pair.scorer.network, split=split).value
    soup = pair.loss(position, scale)
    step = min(STEP, position, 1 - position)
    around = [pair.loss(position + sign * step, scale) for sign in (-1, 1)]
    curvature = (around[0] - 2 * soup + around[1]) / step**2
    ends, middle = (pair.logits(0.0), pair.logits(1.0)), pair.logits(position)
    variance = _variance(ends, middle, scale)
    return SoupAgainstEnsemble(
        position=position,
        soup=soup,
        ensemble=pair.mean_loss(ends, position, scale),
        predicted=position * (1 - position) / 2 * (scale**2 * variance - curvature),
        curvature=curvature,
        variance=variance,
        scale=scale,
    )


def agreement(pairs: Sequence[SoupAgainstEnsemble]) -> Agreement:
    """Return the agreement of the predictions for several pairs with the truth.

    Raises:
        WeightspaceError: there are fewer than three pairs, too few for a meaningful correlation.
    """
    if len(pairs) < 3:
        raise WeightspaceError(f"A correlation needs at least three pairs; found {len(pairs)}.")
    predicted, found = (np.array([getattr(pair, name) for pair in pairs]) for name in ("predicted", "difference"))
    return Agreement(
        correlation=float(np.corrcoef(predicted, found)[0, 1]),
        sign=float(np.mean(np.sign(predicted) == np.sign(found))),
        pairs=len(pairs),
    )


class _Pair:
    """Two networks, the linear path between them, and the data that they are scored on."""

    def __init__(self, a: Ingredient, b: Ingredient, scorer: Scorer, split: Split) -> None:
        self.a, self.b, self.scorer, self.split = a, b, scorer, split

    def put(self, position: float) -> None:
        line = OnLine(self.a, self.b, position)
        self.scorer.put(line.tensors(self.scorer.check), mixed=line.mixed)

    def loss(self, position: float, scale: float) -> float:
        """Return the loss at a position, with scaled logits."""
        self.put(position)
        return self._loss(scaling(scale))

    def logits(self, position: float) -> list[Tensor]:
        """Return the logits at a position, batch by batch, in float64."""
        self.put(position)
        found: list[Tensor] = []
        self._loss(recording(found))
        return found

    def mean_loss(self, ends: tuple[list[Tensor], list[Tensor]], position: float, scale: float) -> float:
        """Return the loss of the weighted mean of two networks' logits, scaled."""

        def mean(number: int, logits: Tensor) -> Tensor:
            first, second = (nth(end, number, logits) for end in ends)
            return (scale * ((1 - position) * first + position * second)).to(logits)

        return self._loss(mean)

    def _loss(self, on_logits: Callable[[int, Tensor], Tensor]) -> float:
        with hearing(self.scorer.network, on_logits):
            scores = self.scorer.scores(self.split)
        if "loss" not in scores:
            raise WeightspaceError(
                f"The scores of task {self.scorer.task.name!r} are {', '.join(scores) or 'none'}; expected 'loss'."
            )
        return scores["loss"]


def _variance(ends: tuple[list[Tensor], list[Tensor]], middle: list[Tensor], scale: float) -> float:
    """Return ``E_x Var_Y(f_Y(x; θ1) − f_Y(x; θ0))`` for ``Y`` drawn from the scaled logits of the soup."""
    total, count = 0.0, 0
    for first, second, logits in zip(*ends, middle, strict=True):
        weights = (scale * logits).softmax(-1)
        apart = second - first
        mean = (weights * apart).sum(-1, keepdim=True)
        spread = (weights * (apart - mean) ** 2).sum(-1)
        total, count = total + float(spread.sum()), count + spread.numel()
    return total / count
