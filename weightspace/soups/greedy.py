"""The greedy soup: ingredients are added in order of their scores, each kept if the soup doesn't get worse.

With replacement, each round scores the soup with one more of each ingredient and adds the best one while that helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.soups.candidates import Alone, Joined
from weightspace.soups.evaluation import Judge, Place
from weightspace.soups.ingredients import (
    Ingredient,
    Source,
    check_distinct,
    check_ingredients,
    ingredients_of,
    warn_of_copies,
)
from weightspace.soups.measures import TaskMeasure
from weightspace.soups.running_mean import RunningMean
from weightspace.soups.scoring import Score, Statistics, settled
from weightspace.suggestions import unknown
from weightspace.tasks.objectives import Mode
from weightspace.tasks.protocol import Task

Tie: TypeAlias = Literal["accept", "reject"]

#: Largest size of a soup with replacement, as a multiple of the number of ingredients.
PORTIONS = 4


@dataclass(frozen=True)
class Trial:
    """A scored candidate: a single ingredient, or the current soup with one more.

    Attributes:
        index: index of this evaluation, from 1.
        trials: total number of evaluations; with replacement, up to the end of the round.
        ingredient: index of the ingredient in the given list, from 0.
        name: name of the ingredient: its path or its index.
        size: number of ingredients in the candidate, counting repetitions; 1 for a single ingredient.
        score: the objective or the function's value, negated if lower is better; higher is better.
        accepted: whether the candidate became the soup; None for a single ingredient.
    """

    index: int
    trials: int
    ingredient: int
    name: str
    size: int
    score: float
    accepted: bool | None

    def progress(self) -> Progress:
        """Return the progress event of the trial, without ``accepted`` for a single ingredient."""
        verdict = {} if self.accepted is None else {"accepted": float(self.accepted)}
        details = {"ingredient": self.ingredient, "size": self.size, **verdict}
        return Progress("trial", self.index, self.trials, self.score, self.name, details)


@brief
@dataclass(frozen=True)
class Soup:
    """A greedy soup and the search that led to it.

    Attributes:
        state: the weights.
        ingredients: indices in the given list, from 0, in the order in which they were added; with replacement, they
            may repeat, which increases their weight.
        scores: ``scores[k]`` is the score of the soup of the first ``k + 1`` ingredients; the last is the soup's own.
        trials: all evaluations: the single ingredients in the given order, then the candidate soups in turn.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> states = [{"w": torch.tensor([x])} for x in (0.0, 1.0, 4.0)]
        >>> soup = ws.greedy_soup(states, lambda state: -float((state["w"] - 0.5).abs()))
        >>> soup.ingredients, soup.scores, soup.state["w"]
        ((0, 1), (-0.5, -0.0), tensor([0.5000]))
    """

    state: StateDict
    ingredients: tuple[int, ...]
    scores: tuple[float, ...]
    trials: tuple[Trial, ...]

    @property
    def score(self) -> float:
        """The score of the soup on the data that it was selected on."""
        return self.scores[-1]


@checked
def greedy_soup(
    states_or_paths: Sequence[Source],
    score: Score | Task,
    *,
    tie: Tie = "accept",
    replacement: bool = False,
    mode: Mode | None = None,
    statistics: Statistics = "auto",
    cache: bool = True,
    cache_key: str | None = None,
    executor: str = "processes",
    workers: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Soup:
    """Add ingredients in order of their scores, best first, keeping each if the score of the mean doesn't fall.

    The soup scores at least as well as the best ingredient *on the data of the score*, but not necessarily on others.

    Args:
        states_or_paths: state dicts or checkpoints (paths, URLs), one or more, with the same names and shapes.
        score: a function of a state dict, or a task, whose objective on the validation split is used.
        mode: ``"max"`` or ``"min"``; by default that of the task or of its objective's name, ``"max"`` for a function.
        tie: ``"accept"`` keeps an ingredient if the score is equal, as in the paper; ``"reject"`` drops it (its code).
        replacement: each round scores the soup with one more of each ingredient, including those already in it, and
            adds the best if the score rises, up to four times as many as there are ingredients; ``tie`` is ignored.
        statistics: BatchNorm statistics in a soup of two or more: ``"reset"`` re-estimates them on the task's training
            batches, ``"none"`` averages them; ``"auto"`` resets them if there are such batches. Not for functions.
        cache: keep evaluations in ``$WEIGHTSPACE_CACHE/evaluations`` and reuse them.
        cache_key: a string that identifies what a function's scores depend on; without it, they aren't cached.
        executor: executor that scores ingredients: ``processes``, ``ray``, or ``serial`` for this process.
        workers: number of parallel workers; the soup doesn't depend on it.
        gpus: number of GPUs to score a network; if positive, the network of a task runs on ``cuda``.
        ray_address: address of a running Ray cluster; by default ``$RAY_ADDRESS``, else a local one.
        on_progress: called with each ``"trial"``, with the fields of ``Trial``.

    Raises:
        CheckpointError: an ingredient cannot be read, doesn't match, or holds NaN or infinity; all are checked first.
        WeightspaceError: no ingredients, only NaN scores, differing integer tensors, or an unknown direction.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482; Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> states = [{"w": torch.tensor([x])} for x in (0.0, 1.0, 4.0)]
        >>> ws.greedy_soup(states, lambda state: -float((state["w"] - 0.5).abs())).ingredients
        (0, 1)
    """
    if tie not in get_args(Tie):
        raise unknown("choice for ties", tie, get_args(Tie))
    place = Place(executor, workers, gpus, ray_address)
    judge = Judge(score, statistics, cache=cache, cache_key=cache_key, place=place, mode=mode)
    try:
        found = ingredients_of(states_or_paths, judge.measure.shapes)
        return greedily(found, judge, tie=tie, replacement=replacement, on_progress=on_progress)
    finally:
        judge.measure.forget()


def greedily(
    ingredients: Sequence[Ingredient],
    judge: Judge,
    *,
    tie: Tie,
    replacement: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    splits: Sequence[str] = ("validation",),
) -> Soup:
    """Return the greedy soup, with scores from a judge and its cache.

    Args:
        ingredients: one or more ingredients.
        judge: judge that scores them.
        tie: as for ``greedy_soup``.
        replacement: whether ingredients may be used more than once.
        on_progress: as for ``greedy_soup``.
        splits: splits to score the single ingredients on, including ``validation``, which alone decides.
    """
    if not replacement:
        check_distinct(ingredients)
    check_ingredients(ingredients, judge.measure.check)
    total = len(ingredients) if replacement else 2 * len(ingredients) - 1
    search = _Search(ingredients, judge, tie, on_progress, total=total)
    singles = search.singles(splits)
    warn_of_copies(ingredients, singles)
    first, *others = sorted(range(len(singles)), key=lambda number: (math.isnan(singles[number]), -singles[number]))
    search.take(first, singles[first], ingredients[first].load())
    if replacement:
        while search.round():
            pass
    else:
        for number in others:
            search.attempt(number)
    return search.soup()


def score_ingredients(
    ingredients: Sequence[Ingredient],
    judge: Judge,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    splits: Sequence[str] = ("validation",),
) -> None:
    """Check ingredients and score each alone, as ``greedily`` does before its search; the judge caches the scores.

    Raises:
        CheckpointError: an ingredient cannot be read, or doesn't match.
        WeightspaceError: all scores are NaN.
    """
    check_ingredients(ingredients, judge.measure.check)
    _Search(ingredients, judge, "accept", on_progress, total=len(ingredients)).singles(splits)


class _Search:
    """The search for a soup, step by step."""

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        judge: Judge,
        tie: Tie,
        on_progress: Callable[[Progress], None] | None,
        *,
        total: int,
    ) -> None:
        self.ingredients, self.judge, self.tie, self.on_progress = ingredients, judge, tie, on_progress
        self.total = total
        self.trials: list[Trial] = []
        self.mean, self.taken, self.scores = RunningMean(), list[int](), list[float]()

    def singles(self, splits: Sequence[str]) -> list[float]:
        """Score each ingredient alone."""
        alone = [Alone(ingredient) for ingredient in self.ingredients]
        found = self.judge.many(alone, splits, lambda at, one: self._note(at, 1, self.judge.value(one), None))
        self.trials.sort(key=lambda trial: trial.ingredient)
        self.trials = [replace(trial, index=index) for index, trial in enumerate(self.trials, start=1)]
        values = [self.judge.value(scores) for scores in found]
        if all(math.isnan(value) for value in values):
            raise WeightspaceError(f"The scores of all {len(values)} ingredients are NaN; expected numbers.")
        return values

    def take(self, number: int, score: float, state: StateDict) -> None:
        """Add an ingredient to the soup."""
        self.mean.add(state, self.ingredients[number].name)
        self.taken.append(number)
        self.scores.append(score)

    def attempt(self, number: int) -> None:
        """Score the soup with one more ingredient, and add that if the score allows."""
        best, size, score = self.scores[-1], len(self.taken) + 1, self._score_with(number)
        accepted = score >= best if self.tie == "accept" else score > best
        if accepted:
            self.take(number, score, self.ingredients[number].load())
        self._note(number, size, score, accepted)

    def round(self) -> bool:
        """Score the soup with one more of each ingredient, add the best if it helps, and return whether it did."""
        size, count = len(self.taken) + 1, len(self.ingredients)
        if size > PORTIONS * count:
            return False
        scores = [self._score_with(number) for number in range(count)]
        best = max(range(count), key=lambda number: (not math.isnan(scores[number]), scores[number]))
        accepted = scores[best] > self.scores[-1]
        if accepted:
            self.take(best, scores[best], self.ingredients[best].load())
        self.total += count
        for number, score in enumerate(scores):
            self._note(number, size, score, accepted and number == best)
        return accepted

    def _score_with(self, number: int) -> float:
        """Return the score of the soup with one more ingredient."""
        joined = Joined(self.mean, [self.ingredients[one] for one in self.taken], self.ingredients[number])
        return self.judge.value(self.judge.one(joined, ("validation",)))

    def soup(self) -> Soup:
        """Return the resulting soup."""
        state, measure = self.mean.state(), self.judge.measure
        if len(self.taken) > 1 and isinstance(measure, TaskMeasure):
            state = settled(measure.task, state, measure.statistics)
        return Soup(self.ingredients[0].as_stored(state), tuple(self.taken), tuple(self.scores), tuple(self.trials))

    def _note(self, number: int, size: int, score: float, accepted: bool | None) -> None:
        name = self.ingredients[number].name
        self.trials.append(Trial(len(self.trials) + 1, self.total, number, name, size, score, accepted))
        if self.on_progress is not None:
            self.on_progress(self.trials[-1].progress())
