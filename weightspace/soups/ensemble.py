"""The logit ensemble: the mean of what the networks return, which costs as many networks to run as it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.soups.candidates import Alone
from weightspace.soups.evaluation import Judge, Place, Scores
from weightspace.soups.ingredients import Check, Ingredient, Source, check_ingredients, ingredients_of
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


#: Takes the number of the call, from 0, and the logits; returns those that count from there on.
OnLogits = Callable[[int, Tensor], Tensor]


@contextmanager
def hearing(network: nn.Module, on_logits: OnLogits) -> Iterator[None]:
    """Call ``on_logits`` with all that the network returns inside the block.

    Raises:
        WeightspaceError: the network returns something else than a tensor.
    """
    calls = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        nonlocal calls
        if not isinstance(output, Tensor):
            raise WeightspaceError(f"Expected a network that returns a tensor of logits; found {type(output)}.")
        calls += 1
        return on_logits(calls - 1, output)

    handle = network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def recording(into: list[Tensor]) -> OnLogits:
    """Return a function that appends the logits to a list, in float64, and lets them pass."""

    def record(number: int, logits: Tensor) -> Tensor:
        into.append(logits.detach().double().clone())
        return logits

    return record


def replaying(recorded: list[Tensor]) -> OnLogits:
    """Return a function that puts recorded logits in the place of those of the network."""
    return lambda number, logits: nth(recorded, number, logits).to(logits)


def scaling(factor: float) -> OnLogits:
    """Return a function that multiplies the logits."""
    return lambda number, logits: logits * factor


def nth(recorded: list[Tensor], number: int, logits: Tensor) -> Tensor:
    """Return the recorded logits of a call.

    Raises:
        WeightspaceError: they are of another shape, or there are none: the batches were others.
    """
    if number >= len(recorded) or recorded[number].shape != logits.shape:
        found = tuple(recorded[number].shape) if number < len(recorded) else "none"
        raise WeightspaceError(
            f"Call {number + 1} of the network returned logits of shape {tuple(logits.shape)}, and of the network "
            f"before {found}. Expected a task that scores on the same batches each time."
        )
    return recorded[number]
