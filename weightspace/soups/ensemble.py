"""The logit ensemble: the mean of the networks' logits, at the inference cost of all of them."""

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

    Memory holds one network at a time, and the logits of a split in float64.

    Args:
        states_or_paths: state dicts or checkpoints, one or more.
        task: task whose network returns a tensor of logits and which scores on the same batches each time.
        splits: data to score on.
        cache: as for ``greedy_soup``.

    Raises:
        CheckpointError: an ingredient cannot be read, or its names or shapes differ from the task's network.
        WeightspaceError: there are no ingredients, or the network doesn't return a tensor.
    """
    judge = Judge(task, "none", cache=cache, cache_key=None, place=Place(), mode="max")  # unused: nothing is selected
    try:
        ingredients = ingredients_of(states_or_paths, judge.measure.shapes)
        check_ingredients(ingredients, judge.measure.check)
        return ensembled(ingredients, judge, splits)
    finally:
        judge.measure.forget()


def ensembled(ingredients: Sequence[Ingredient], judge: Judge, splits: Sequence[str]) -> Scores:
    """Return the scores of an ensemble, from the judge's cache if possible."""
    measure = judge.measure
    if not isinstance(measure, TaskMeasure):
        raise TypeError("an ensemble is scored by a task")
    return judge.kept(_Ensemble(ingredients), splits, lambda split: _scores(measure, ingredients, split))


@dataclass(frozen=True)
class _Ensemble:
    """An ensemble as a candidate, for its cache key only; it has no tensors."""

    weights: Sequence[Ingredient]
    mixed = False

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"ensemble": "logits"}

    def tensors(self, check: Check) -> Tensors:
        raise NotImplementedError


def _scores(measure: TaskMeasure, ingredients: Sequence[Ingredient], split: str) -> Mapping[str, float]:
    """Run the networks over a split in turn, with running mean logits; the last scores are those of the ensemble."""
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


#: Function from the call index, from 0, and the logits to the logits that replace them.
OnLogits = Callable[[int, Tensor], Tensor]


@contextmanager
def hearing(network: nn.Module, on_logits: OnLogits) -> Iterator[None]:
    """Replace the outputs of the network by ``on_logits`` inside the block.

    Raises:
        WeightspaceError: the network doesn't return a tensor.
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
    """Return a function that appends the logits to a list, in float64, and passes them on unchanged."""

    def record(number: int, logits: Tensor) -> Tensor:
        into.append(logits.detach().double().clone())
        return logits

    return record


def scaling(factor: float) -> OnLogits:
    """Return a function that multiplies the logits by a factor."""
    return lambda number, logits: logits * factor


def nth(recorded: list[Tensor], number: int, logits: Tensor) -> Tensor:
    """Return the recorded logits of a call.

    Raises:
        WeightspaceError: there are none, or their shape differs: the batches weren't the same.
    """
    if number >= len(recorded) or recorded[number].shape != logits.shape:
        found = tuple(recorded[number].shape) if number < len(recorded) else "none"
        raise WeightspaceError(
            f"Call {number + 1} of the network returned logits of shape {tuple(logits.shape)}; the previous network "
            f"returned {found}. Expected a task that scores on the same batches each time."
        )
    return recorded[number]
