"""Trials of a search: an engine's proposals, scored on the validation split, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from weightspace.progress import Progress
from weightspace.searching.candidates import Candidate
from weightspace.searching.engines import Engine
from weightspace.searching.evaluation import Evaluator, OnOutcome, Outcome
from weightspace.searching.report import SearchTrial
from weightspace.searching.space import Dimension, SearchSpace, Values

#: Successive halving: the fraction of candidates kept in each round, and the parts of the validation data in each.
_KEPT, _ROUNDS = 3, (9, 3, 1)

#: Significant digits of proposed numbers.
_DIGITS = 6

#: The split that trials are scored on.
SPLIT = ("validation",)


@dataclass
class Trials:
    """The trials of a search so far.

    Attributes:
        space: the search space.
        evaluators: task -> evaluator.
        candidate: makes a candidate of a recipe's text.
        trials: maximum number of trials.
        together: number of candidates that are proposed and scored at a time.
        deadline: time in seconds, by ``time.monotonic``, after which no further trial begins; None: no limit.
        on_progress: called after each trial.
        done: the trials.
    """

    space: SearchSpace
    evaluators: Mapping[str, Evaluator]
    candidate: Callable[[str], Candidate]
    trials: int
    together: int = 1
    deadline: float | None = None
    on_progress: Callable[[Progress], None] | None = None
    done: list[SearchTrial] = field(default_factory=list)
    _known: dict[tuple[str, float], tuple[dict[str, float], str]] = field(default_factory=dict)
    _reported: int = 0
    _total: int = 0

    def run(self, engine: Engine) -> None:
        """Make trials until the budget is used up or the engine has no more proposals."""
        while len(self.done) < self.trials and (not self.done or self._in_time()):
            proposals = engine.ask(min(self.together, self.trials - len(self.done)))
            if not proposals:
                return
            found = self._score(self._rounded(proposals), self.evaluators, 1.0)
            self.done += found
            engine.tell(proposals, [self.values_of(trial) for trial in found])

    def halve(self, engine: Engine, on_part: Callable[[int], Mapping[str, Evaluator]]) -> None:
        """Score all proposals on a part of the validation data, the best on more of it, and few on all.

        Args:
            engine: an engine that doesn't learn from scores.
            on_part: takes the number of parts, and returns evaluators by one of them.
        """
        left = self._rounded(engine.ask(self.trials))
        self._total = _evaluations_of(len(left))
        numbers = list(range(len(left)))
        for parts in _ROUNDS:
            evaluators = self.evaluators if parts == 1 else on_part(parts)
            numbers = self._round(left, numbers, evaluators, 1 / parts)
            possible = [number for number in numbers if self.values_of(self.done[number]) is not None]
            ranked = sorted(possible, key=lambda number: -_mean(self.values_of(self.done[number])))
            numbers = sorted(ranked[: -(-len(numbers) // _KEPT)])
            if not numbers:
                return
            if not self._in_time():  # the best candidate so far is still scored on all data
                numbers = ranked[:1]

    def _round(
        self, proposals: Sequence[Values], numbers: Sequence[int], evaluators: Mapping[str, Evaluator], share: float
    ) -> list[int]:
        """Score proposals of these numbers while there is time, the first ones always; return those scored."""
        step = len(numbers) if self.deadline is None else self.together
        scored: list[int] = []
        for start in range(0, len(numbers), step):
            if scored and not self._in_time():
                break
            some = numbers[start : start + step]
            found = self._score([proposals[number] for number in some], evaluators, share, some)
            for number, trial in zip(some, found, strict=True):
                self.done[number : number + 1] = [trial]
            scored += some
        return scored

    def values_of(self, trial: SearchTrial) -> list[float] | None:
        """Return a trial's scores, higher is better; None for an impossible merge."""
        if trial.error:
            return None
        signs = [-1 if evaluator.measure.mode == "min" else 1 for evaluator in self.evaluators.values()]
        return [sign * score for sign, score in zip(signs, trial.scores.values(), strict=True)]

    def _in_time(self) -> bool:
        return self.deadline is None or time.monotonic() < self.deadline

    def _rounded(self, proposals: Sequence[Values]) -> list[Values]:
        """Return proposals with numbers of a few digits, inside the ranges."""
        dimensions = self.space.dimensions
        return [
            {one.name: values[one.name] if one.choices else _short(values[one.name], one) for one in dimensions}
            for values in proposals
        ]

    def _score(
        self,
        proposals: Sequence[Values],
        evaluators: Mapping[str, Evaluator],
        share: float,
        numbers: Sequence[int] | None = None,
    ) -> list[SearchTrial]:
        """Return the trials of proposals; equal recipes are scored once."""
        texts = [self.space.written(values) for values in proposals]
        new = list(dict.fromkeys(text for text in texts if (text, share) not in self._known))
        candidates = [self.candidate(text) for text in new]
        outcomes: list[dict[str, Outcome]] = [{} for _ in new]
        for position, (task, evaluator) in enumerate(evaluators.items(), start=1):
            report = self._reporter(evaluator, share) if position == len(evaluators) else None
            for outcome, by_task in zip(evaluator.many(candidates, SPLIT, report), outcomes, strict=True):
                by_task[task] = outcome
        for text, by_task in zip(new, outcomes, strict=True):
            self._known[text, share] = _scores(by_task, evaluators)
        places = range(len(self.done), len(self.done) + len(texts)) if numbers is None else numbers
        known = [self._known[text, share] for text in texts]
        for text in _repeated(texts, new):
            self._report(next(reversed(self._known[text, share][0].values()), None), share)
        return [
            SearchTrial(place, values, scores, share, error)
            for place, values, (scores, error) in zip(places, proposals, known, strict=True)
        ]

    def _reporter(self, evaluator: Evaluator, share: float) -> OnOutcome:
        """Return a function that reports each trial when it is scored."""

        return lambda number, outcome: self._report(evaluator.objective(outcome), share)

    def _report(self, score: float | None, share: float) -> None:
        """Report a trial, with its objective on the last task."""
        self._reported += 1
        if self.on_progress is not None:
            total = self._total or self.trials
            self.on_progress(Progress("trial", self._reported, total, score, details={"share": share}))


def _repeated(texts: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the recipes that were scored before, or earlier in this list."""
    waiting = set(new)
    return [text for text in texts if text not in waiting or waiting.discard(text)]


def _scores(outcomes: Mapping[str, Outcome], evaluators: Mapping[str, Evaluator]) -> tuple[dict[str, float], str]:
    """Return the objective of every task, and an empty text; or nothing, and why the merge is impossible."""
    scores: dict[str, float] = {}
    for task, outcome in outcomes.items():
        value = evaluators[task].objective(outcome)
        if isinstance(outcome, str) or value is None:
            return {}, outcome if isinstance(outcome, str) else f"{_title(task)} is not finite."
        scores[task] = value
    return scores, ""


def _title(task: str) -> str:
    """Return how errors name a score; that of a function or command has no task."""
    return "The score" if task == "score" else f"The score on {task}"


def _evaluations_of(candidates: int) -> int:
    """Return the evaluations of successive halving: of all candidates, and of the best third in every later round."""
    total = 0
    for _ in _ROUNDS:
        total += candidates
        candidates = -(-candidates // _KEPT)
    return total


def _mean(scores: Sequence[float] | None) -> float:
    return sum(scores) / len(scores) if scores else float("-inf")


def _short(value: float, dimension: Dimension) -> float:
    """Return a number of a few digits within its range."""
    return value if dimension.integer else min(dimension.high, max(dimension.low, float(f"{value:.{_DIGITS}g}")))
