"""The greedy soup: ingredients in the order of their scores, each kept if the soup does not get worse by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.soups.ingredients import Ingredient, Source, ingredients_of
from weightspace.soups.running import RunningMean
from weightspace.soups.scoring import Score, Scorer, Statistics, Tensors, settled
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import Task, objective_value

Tie: TypeAlias = Literal["accept", "reject"]


@dataclass(frozen=True)
class Trial:
    """A candidate that was scored: an ingredient alone, or the soup so far with it.

    Attributes:
        index: of this evaluation, from 1.
        trials: how many there are in all.
        ingredient: its number in the list that was given, from 0.
        name: its name: a path, or that number.
        size: how many ingredients the candidate has: 1 is the ingredient alone.
        score: higher is better.
        accepted: whether the candidate is the soup from here on; None of an ingredient alone.
    """

    index: int
    trials: int
    ingredient: int
    name: str
    size: int
    score: float
    accepted: bool | None


@dataclass(frozen=True)
class Soup:
    """A soup, and how it came about.

    Attributes:
        state: the weights.
        ingredients: numbers in the list that was given, from 0, in the order in which they were taken.
        scores: ``scores[k]`` is that of the soup of the first ``k + 1`` of them; the last is the soup's own.
        trials: every evaluation: the ingredients alone in the order given, then one soup after the other.
    """

    state: StateDict
    ingredients: tuple[int, ...]
    scores: tuple[float, ...]
    trials: tuple[Trial, ...]

    @property
    def score(self) -> float:
        """That of the soup, by which it was chosen."""
        return self.scores[-1]


def greedy_soup(
    states_or_paths: Sequence[Source],
    score: Score | Task,
    *,
    tie: Tie = "accept",
    statistics: Statistics = "auto",
    on_trial: Callable[[Trial], None] | None = None,
) -> Soup:
    """Add ingredients in the order of their scores, best first, each if the score of the mean does not fall.

    The soup scores no less than the best ingredient *on the data of the score*; on others it may.

    Args:
        states_or_paths: state dicts or checkpoints (paths, URLs), one or more, of the same names and shapes.
        score: a function of a state dict, higher is better; or a task, whose objective on the validation split
            counts.
        tie: ``"accept"`` keeps an ingredient that changes nothing, as the paper says it; ``"reject"`` does not, as
            its authors' code does.
        statistics: BatchNorm's in a soup of two or more: ``"reset"`` measures them over the task's training batches,
            ``"none"`` averages them; ``"auto"`` resets where there are such batches. A function has none.
        on_trial: called after every evaluation.

    Raises:
        CheckpointError: an ingredient cannot be read, or has other names or shapes than the first.
        WeightspaceError: there are no ingredients, all scores are NaN, integer tensors differ.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1.
    """
    if tie not in get_args(Tie):
        raise unknown("choice for ties", tie, get_args(Tie))
    ingredients = ingredients_of(states_or_paths)
    judge = _judge(score, statistics)
    return _Search(ingredients, judge, tie, on_trial).soup(score if isinstance(score, Task) else None, statistics)


def _judge(score: Score | Task, statistics: Statistics) -> Callable[[Ingredient, Tensors, bool], float]:
    """Return what scores a candidate: given its last ingredient, its tensors, and whether it is a mixture."""
    if not isinstance(score, Task):
        return lambda ingredient, tensors, mixed: float(score(dict(tensors)))
    scorer = Scorer(score, statistics)

    def judged(ingredient: Ingredient, tensors: Tensors, mixed: bool) -> float:
        scorer.put(tensors, mixed=mixed)
        return float(objective_value(score, scorer.scores("validation")))

    return judged


class _Search:
    """The search for a soup, step by step."""

    def __init__(self, ingredients, judge, tie, on_trial) -> None:
        self.ingredients, self.judge, self.tie, self.on_trial = ingredients, judge, tie, on_trial
        self.trials: list[Trial] = []
        self.mean = RunningMean()

    def soup(self, task: Task | None, statistics: Statistics) -> Soup:
        singles = [self._single(number) for number in range(len(self.ingredients))]
        if all(math.isnan(score) for score in singles):
            raise WeightspaceError(f"The score of all {len(singles)} ingredients is NaN; expected a number.")
        first, *others = sorted(range(len(singles)), key=lambda number: (math.isnan(singles[number]), -singles[number]))
        self.mean.add(self.ingredients[first].load(), self.ingredients[first].name)
        taken, scores = [first], [singles[first]]
        for number in others:
            score, accepted = self._joined(number, scores[-1])
            if accepted:
                taken.append(number)
                scores.append(score)
        state = self.mean.state()
        if len(taken) > 1 and task is not None:
            state = settled(task, state, statistics)
        return Soup(state, tuple(taken), tuple(scores), tuple(self.trials))

    def _single(self, number: int) -> float:
        ingredient = self.ingredients[number]
        score = self.judge(ingredient, ingredient.load().items(), False)
        self._note(number, 1, score, None)
        return score

    def _joined(self, number: int, best: float) -> tuple[float, bool]:
        """Score the soup with an ingredient more, and take it in if it is good for it."""
        ingredient = self.ingredients[number]
        state = ingredient.load()
        score = self.judge(ingredient, self.mean.joined(state, ingredient.name), True)
        accepted = score >= best if self.tie == "accept" else score > best
        if accepted:
            self.mean.add(state, ingredient.name)
        self._note(number, len(self.mean.names) + (not accepted), score, accepted)
        return score, accepted

    def _note(self, number: int, size: int, score: float, accepted: bool | None) -> None:
        total = 2 * len(self.ingredients) - 1
        name = self.ingredients[number].name
        self.trials.append(Trial(len(self.trials) + 1, total, number, name, size, score, accepted))
        if self.on_trial is not None:
            self.on_trial(self.trials[-1])
