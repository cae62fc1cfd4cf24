"""Measures of candidates: a task, or a user's function. Both are sent to the workers that score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.soups.file_dependencies import noting_reads, reads_of
from weightspace.soups.fingerprints import fingerprint_of_data, fingerprint_of_task
from weightspace.soups.scoring import Score, Scorer, Statistics, Tensors
from weightspace.tasks.objectives import Mode
from weightspace.tasks.protocol import Task, objective_value


class Measure(Protocol):
    """Scores candidates, and says what the scores depend on beside the weights."""

    def check(self, state: StateDict, name: str) -> None:
        """Check that a model can be scored."""
        ...

    def scores(self, tensors: Tensors, splits: Sequence[str], *, mixed: bool) -> dict[str, Mapping[str, float]]:
        """Return what is found of a model over every split."""
        ...

    def key(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        """Return what the scores depend on beside the weights."""
        ...

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the score that decides: higher is better."""
        ...

    def has(self, scores: Mapping[str, float]) -> bool:
        """Return whether the score that decides is among scores."""
        ...

    def reads(self) -> dict[str, str]:
        """Return path -> SHA-256 of what was read for scores in this process."""
        ...


@dataclass(frozen=True)
class TaskMeasure:
    """A task as a measure.

    Attributes:
        task: scores, and has the data.
        statistics: what becomes of BatchNorm's in mixtures.
        device: where the network runs; None: where the task builds it.
        run: a name of this use, by which a process knows the network again that it has built.
        mode: whether less (``"min"``) or more of the objective is better.
    """

    task: Task
    statistics: Statistics
    device: str | None
    run: str
    mode: Mode

    def scorer(self) -> Scorer:
        """Return the network of this process into which candidates are put: one, built once."""
        if self.run not in _SCORERS:
            _SCORERS.clear()
            with self._noting_reads():
                _SCORERS[self.run] = Scorer(self.task, self.statistics, device=self.device)
        return _SCORERS[self.run]

    def check(self, state: StateDict, name: str) -> None:
        """Check that a model has the names and shapes of the task's network.

        Raises:
            CheckpointError: it has not.
        """
        self.scorer().check(state, name)

    def scores(self, tensors: Tensors, splits: Sequence[str], *, mixed: bool) -> dict[str, Mapping[str, float]]:
        """Return what the task finds over every split."""
        scorer = self.scorer()
        scorer.put(tensors, mixed=mixed)
        return {split: self.score(split) for split in splits}

    def score(self, split: str) -> Mapping[str, float]:
        """Return what the task finds over a split of the network that stands there."""
        scorer = self.scorer()
        with self._noting_reads():
            return scorer.scores(split)

    def key(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        """Return the fingerprints of the task and of the data.

        Raises:
            WeightspaceError: one of them has none.
        """
        resets = mixed and self.scorer().resets
        if self.run not in _FINGERPRINTS:  # once, since scoring may leave something behind in a task
            _FINGERPRINTS[self.run] = fingerprint_of_task(self.task)
        with self._noting_reads():
            data = {part: fingerprint_of_data(self.task, part) for part in ((split, "train") if resets else (split,))}
        return {"task": _FINGERPRINTS[self.run], "data": data, "split": split, "device": self.device or "cpu"}

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the task's objective, negated where less of it is better."""
        return float(objective_value(self.task, scores, self.mode))

    def has(self, scores: Mapping[str, float]) -> bool:
        """Return whether the task's objective is there."""
        return self.task.objective in scores

    def reads(self) -> dict[str, str]:
        """Return what was read for the task."""
        return reads_of(self.task.name)

    def _noting_reads(self) -> AbstractContextManager[None]:
        """Note what is read; a task that has a word for its data (``fingerprint``) speaks for their files as well."""
        return noting_reads(self.task.name, files=not callable(getattr(self.task, "fingerprint", None)))

    def forget(self) -> None:
        """Let go of the network."""
        _SCORERS.pop(self.run, None)
        _FINGERPRINTS.pop(self.run, None)


@dataclass(frozen=True)
class FunctionMeasure:
    """A function of a state dict as a measure; ``cache_key`` is its word for what it depends on."""

    function: Score
    cache_key: str | None
    mode: Mode

    def check(self, state: StateDict, name: str) -> None:
        """Let anything pass: the function will say."""

    def scores(self, tensors: Tensors, splits: Sequence[str], *, mixed: bool) -> dict[str, Mapping[str, float]]:
        """Return the one score, which has no split."""
        found = self.function(dict(tensors))
        try:
            score = float(found)
        except (TypeError, ValueError) as error:
            raise WeightspaceError(f"The function of scores returned {found!r}; expected a number.") from error
        return {split: {"score": score} for split in splits}

    def key(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        """Return the function's own word."""
        return {"function": self.cache_key}

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the one score, negated where less of it is better."""
        return -scores["score"] if self.mode == "min" else scores["score"]

    def has(self, scores: Mapping[str, float]) -> bool:
        """Return whether the one score is there."""
        return "score" in scores

    def reads(self) -> dict[str, str]:
        """Return nothing: the function's own word counts."""
        return {}

    def forget(self) -> None:
        """Do nothing."""


#: The network that this process scores with, by its use.
_SCORERS: dict[str, Scorer] = {}
#: The fingerprint of a task, by its use.
_FINGERPRINTS: dict[str, str] = {}
