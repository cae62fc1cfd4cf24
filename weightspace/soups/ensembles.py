"""The logit ensemble: the mean of what the networks return, which costs as many networks to run as it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightspace.soups.candidates import Alone
from weightspace.soups.checks import Check, check_ingredients
from weightspace.soups.ingredients import Ingredient, Source, ingredients_of
from weightspace.soups.judging import Judge, Place, Scores
from weightspace.soups.logits import hearing, nth
from weightspace.soups.measures import TaskMeasure
from weightspace.soups.scoring import Tensors
from weightspace.tasks.protocol import Task


def ensemble(
    states_or_paths: Sequence[Source],
    task: Task,
    *,
    splits: Sequence[str] = ("validation", "test"),
    cache: bool = True,
) -> Mapping[str, Mapping[str, float]]:
    """Return the scores of the mean of the logits of all networks.

    One network is in memory at a time, and the logits of a split in float64.

    Args:
        states_or_paths: state dicts or checkpoints, one or more.
        task: its network returns a tensor of logits, and it scores on the same batches each time.
        splits: data to score on.
        cache: as for ``greedy_soup``.

    Raises:
        CheckpointError: an ingredient cannot be read, or has other names or shapes than the task's network.
        WeightspaceError: there are none, or the network returns something else than a tensor.
    """
    judge = Judge(task, "none", cache=cache, cache_key=None, place=Place(), mode="max")  # nothing is chosen
    try:
        ingredients = ingredients_of(states_or_paths)
        check_ingredients(ingredients, judge.measure.check)
        return ensembled(ingredients, judge, splits)
    finally:
        judge.measure.forget()


def ensembled(ingredients: Sequence[Ingredient], judge: Judge, splits: Sequence[str]) -> Scores:
    """Return the scores of an ensemble by a judge that may know them already."""
    measure = judge.measure
    if not isinstance(measure, TaskMeasure):
        raise TypeError("an ensemble is scored by a task")
    return judge.kept(_Ensemble(ingredients), splits, lambda split: _scores(measure, ingredients, split))


@dataclass(frozen=True)
class _Ensemble:
    """An ensemble as a candidate that is known by its key, and made by nobody."""

    weights: Sequence[Ingredient]
    mixed = False

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"ensemble": "logits"}

    def tensors(self, check: Check) -> Tensors:
        raise NotImplementedError


def _scores(measure: TaskMeasure, ingredients: Sequence[Ingredient], split: str) -> Mapping[str, float]:
    """Run one network after the other over a split; the scores of the last are those of the mean of all."""
    scorer = measure.scorer()
    means: list[Tensor] = []
    found: Mapping[str, float] = {}
    for count, ingredient in enumerate(ingredients, start=1):

        def join(number: int, logits: Tensor, count: int = count) -> Tensor:
            wide = logits.detach().double()
            if count == 1:
                means.append(wide)
            else:
                mean = nth(means, number, logits)
                means[number] = mean - (mean - wide) / count
            return means[number].to(logits)

        scorer.put(Alone(ingredient).tensors(scorer.check), mixed=False)
        with hearing(scorer.network, join):
            found = measure.score(split)
    return found
