"""The greedy soup: ingredients in the order of their scores, each kept if the soup does not get worse by it.

With replacement, every round scores the soup with each ingredient once more and takes the best one while it helps.
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

#: How many times as many portions as ingredients a soup with replacement has, at most.
PORTIONS = 4


@dataclass(frozen=True)
class Trial:
    """A candidate that was scored: an ingredient alone, or the soup so far with it.

    Attributes:
        index: of this evaluation, from 1.
        trials: how many there are in all; with replacement, up to the end of the round.
        ingredient: its number in the list that was given, from 0.
        name: its name: a path, or that number.
        size: how many ingredients the candidate has, repeated ones counted: 1 is the ingredient alone.
        score: higher is better: the objective, or what the function returned, negated where less of it is better.
        accepted: whether the candidate is the soup from here on; None of an ingredient alone.
    """

    index: int
    trials: int
    ingredient: int
    name: str
    size: int
    score: float
    accepted: bool | None

    def progress(self) -> Progress:
        """Return the event that tells of it, without ``accepted`` of an ingredient alone."""
        verdict = {} if self.accepted is None else {"accepted": float(self.accepted)}
        details = {"ingredient": self.ingredient, "size": self.size, **verdict}
        return Progress("trial", self.index, self.trials, self.score, self.name, details)


@brief
@dataclass(frozen=True)
class Soup:
    """A soup, and how it came about.

    Attributes:
        state: the weights.
        ingredients: numbers in the list that was given, from 0, in the order in which they were taken; with
            replacement, one may be there several times, and weighs so much more.
        scores: ``scores[k]`` is that of the soup of the first ``k + 1`` of them; the last is the soup's own.
        trials: every evaluation: the ingredients alone in the order given, then one soup after the other.

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
        """That of the soup, by which it was chosen."""
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
    """Add ingredients in the order of their scores, best first, each if the score of the mean does not fall.

    The soup scores no less than the best ingredient *on the data of the score*; on others it may.

    Args:
        states_or_paths: state dicts or checkpoints (paths, URLs), one or more, of the same names and shapes.
        score: a function of a state dict; or a task, whose objective on the validation split counts.
        mode: ``"max"`` or ``"min"``; by default what the task or its objective's name says, ``"max"`` of a function.
        tie: ``"accept"`` keeps an ingredient that changes nothing, as in the paper; ``"reject"``, its code's, does not.
        replacement: every round scores the soup with each of the ingredients, those in it too, and takes the best
            one if the score rises, up to four times as many portions as ingredients: a weighted mean. No ``tie``.
        statistics: BatchNorm's in a soup of two or more: ``"reset"`` measures them over the task's training batches,
            ``"none"`` averages them; ``"auto"`` resets where there are such batches. A function has none.
        cache: keep evaluations in ``$WEIGHTSPACE_CACHE/evaluations``, and repeat none.
        cache_key: what a function's scores depend on, in your own words; without it they are not kept.
        executor: where ingredients are scored: ``processes``, ``ray``, or ``serial``: here.
        workers: how many score at a time; the soup does not depend on it.
        gpus: that scoring a network needs; with any, the network of a task runs on ``cuda``.
        ray_address: of a running Ray cluster; by default ``$RAY_ADDRESS``, else one of this machine.
        on_progress: told of every ``"trial"``: see ``Trial``, whose fields it has.

    Raises:
        CheckpointError: an ingredient cannot be read, does not fit, or holds NaN or infinity; all are checked first.
        WeightspaceError: no ingredients, only NaN as scores, integer tensors that differ, or an unknown direction.

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
        found = ingredients_of(states_or_paths)
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
    """Return the greedy soup by a judge that may know scores already.

    Args:
        ingredients: one or more.
        judge: scores.
        tie: as for ``greedy_soup``, and so are ``replacement`` and ``on_progress``.
        replacement: whether ingredients may be taken several times.
        on_progress: told of every ``"trial"``: see ``Trial``, whose fields it has.
        splits: to score the ingredients on while they are there; only ``validation``, one of them, decides.
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
    """Check ingredients and score each alone, as ``greedily`` does before it searches; the judge knows the scores then.

    Raises:
        CheckpointError: an ingredient cannot be read, or does not fit.
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
        """Score every ingredient alone."""
        alone = [Alone(ingredient) for ingredient in self.ingredients]
        found = self.judge.many(alone, splits, lambda at, one: self._note(at, 1, self.judge.value(one), None))
        self.trials.sort(key=lambda trial: trial.ingredient)
        self.trials = [replace(trial, index=index) for index, trial in enumerate(self.trials, start=1)]
        values = [self.judge.value(scores) for scores in found]
        if all(math.isnan(value) for value in values):
            raise WeightspaceError(f"The score of all {len(values)} ingredients is NaN; expected a number.")
        return values

    def take(self, number: int, score: float, state: StateDict) -> None:
        """Take an ingredient in."""
        self.mean.add(state, self.ingredients[number].name)
        self.taken.append(number)
        self.scores.append(score)

    def attempt(self, number: int) -> None:
        """Score the soup with an ingredient more, and take it in if it is good for it."""
        best, size, score = self.scores[-1], len(self.taken) + 1, self._score_with(number)
        accepted = score >= best if self.tie == "accept" else score > best
        if accepted:
            self.take(number, score, self.ingredients[number].load())
        self._note(number, size, score, accepted)

    def round(self) -> bool:
        """Score the soup with each ingredient more, take the best one in if it is good for it, and tell whether."""
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
        """Return the score of the soup with an ingredient more."""
        joined = Joined(self.mean, [self.ingredients[one] for one in self.taken], self.ingredients[number])
        return self.judge.value(self.judge.one(joined, ("validation",)))

    def soup(self) -> Soup:
        """Return what has come about."""
        state, measure = self.mean.state(), self.judge.measure
        if len(self.taken) > 1 and isinstance(measure, TaskMeasure):
            state = settled(measure.task, state, measure.statistics)
        return Soup(state, tuple(self.taken), tuple(self.scores), tuple(self.trials))

    def _note(self, number: int, size: int, score: float, accepted: bool | None) -> None:
        name = self.ingredients[number].name
        self.trials.append(Trial(len(self.trials) + 1, self.total, number, name, size, score, accepted))
        if self.on_progress is not None:
            self.on_progress(self.trials[-1].progress())
