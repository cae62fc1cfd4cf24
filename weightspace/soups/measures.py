"""Measures that score candidates: a task or a user's function, both sent to the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.soups.file_dependencies import noting_reads, reads_of
from weightspace.soups.fingerprints import fingerprint_of_data, fingerprint_of_task
from weightspace.soups.scoring import Score, Scorer, Statistics, Tensors
from weightspace.tasks.objectives import Mode
from weightspace.tasks.protocol import Task, objective_value


@dataclass(frozen=True)
class TaskMeasure:
    """A task as a measure.

    Attributes:
        task: task with the scores and the data.
        statistics: treatment of BatchNorm statistics in mixtures.
        device: device of the network; None for the one on which the task builds it.
        run: unique name of this run, under which a process caches its network.
        mode: ``"min"`` if a lower objective is better, else ``"max"``.
    """

    task: Task
    statistics: Statistics
    device: str | None
    run: str
    mode: Mode

    def scorer(self) -> Scorer:
        """Return this process's scorer, whose network is built once and reused for all candidates."""
        if self.run not in _SCORERS:
            _SCORERS.clear()
            with self._noting_reads():
                _SCORERS[self.run] = Scorer(self.task, self.statistics, device=self.device)
        return _SCORERS[self.run]

    def check(self, state: StateDict, name: str) -> None:
        """Check that a model has the names and shapes of the task's network.

        Raises:
            CheckpointError: names or shapes differ.
        """
        self.scorer().check(state, name)

    def fitted(self, state: StateDict, name: str) -> StateDict:
        """Return a model in the layout of the task's network; see ``Scorer.fitted``."""
        return self.scorer().fitted(state, name)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors of the task's network, name -> shape."""
        return self.scorer().shapes

    def scores(self, tensors: Tensors, splits: Sequence[str], *, mixed: bool) -> dict[str, Mapping[str, float]]:
        """Return the task's scores on each split."""
        scorer = self.scorer()
        scorer.put(tensors, mixed=mixed)
        return {split: self.score(split) for split in splits}

    def score(self, split: str) -> Mapping[str, float]:
        """Return the task's scores of the current network on a split."""
        scorer = self.scorer()
        with self._noting_reads():
            return scorer.scores(split)

    def key(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        """Return the fingerprints of the task and of the data.

        Raises:
            WeightspaceError: the task or the data has no fingerprint.
        """
        resets = mixed and self.scorer().resets
        if self.run not in _FINGERPRINTS:  # once, since scoring may change the task's state
            _FINGERPRINTS[self.run] = fingerprint_of_task(self.task)
        with self._noting_reads():
            data = {part: fingerprint_of_data(self.task, part) for part in ((split, "train") if resets else (split,))}
        return {"task": _FINGERPRINTS[self.run], "data": data, "split": split, "device": self.device or "cpu"}

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the task's objective, negated if lower is better."""
        return float(objective_value(self.task, scores, self.mode))

    def has(self, scores: Mapping[str, float]) -> bool:
        """Return whether the scores include the task's objective."""
        return self.task.objective in scores

    def reads(self) -> dict[str, str]:
        """Return path -> SHA-256 of the files read for the task."""
        return reads_of(self.task.name)

    def _noting_reads(self) -> AbstractContextManager[None]:
        """Record the files read; those of a task with its own data ``fingerprint`` are covered by that."""
        return noting_reads(self.task.name, files=not callable(getattr(self.task, "fingerprint", None)))

    def forget(self) -> None:
        """Release the cached network."""
        _SCORERS.pop(self.run, None)
        _FINGERPRINTS.pop(self.run, None)


@dataclass(frozen=True)
class FunctionMeasure:
    """A function of a state dict as a measure; ``cache_key`` identifies what it depends on."""

    function: Score
    cache_key: str | None
    mode: Mode

    def check(self, state: StateDict, name: str) -> None:
        """Accept any model; the function itself checks it."""

    def fitted(self, state: StateDict, name: str) -> StateDict:
        """Return a model as it is."""
        return state

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Empty: a function has no network."""
        return {}

    def scores(self, tensors: Tensors, splits: Sequence[str], *, mixed: bool) -> dict[str, Mapping[str, float]]:
        """Return the function's value as the score of each split."""
        found = self.function(dict(tensors))
        try:
            score = float(found)
        except (TypeError, ValueError) as error:
            raise WeightspaceError(f"The score function returned {found!r}; expected a number.") from error
        return {split: {"score": score} for split in splits}

    def key(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        """Return the function's cache key."""
        return {"function": self.cache_key}

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the score, negated if lower is better."""
        return -scores["score"] if self.mode == "min" else scores["score"]

    def has(self, scores: Mapping[str, float]) -> bool:
        """Return whether the score is present."""
        return "score" in scores

    def reads(self) -> dict[str, str]:
        """Return an empty dict: only the cache key counts."""
        return {}

    def forget(self) -> None:
        """Do nothing."""


#: Run name -> scorer of this process.
_SCORERS: dict[str, Scorer] = {}
#: Run name -> fingerprint of the task.
_FINGERPRINTS: dict[str, str] = {}
