"""Evaluation of candidates by tasks, a function or a command, with a cache so that none is repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.parallel import here_or, run_jobs
from weightspace.searching.candidates import Candidate
from weightspace.searching.command_score import CommandScore
from weightspace.searching.lm_eval import LmEvalScore
from weightspace.soups.evaluation import Place
from weightspace.soups.measures import FunctionMeasure, TaskMeasure
from weightspace.soups.score_cache import Evaluations
from weightspace.tasks.objectives import Mode

#: Split -> name -> score; the text of the error if the merge is impossible.
Outcome: TypeAlias = "dict[str, Mapping[str, float]] | str"
#: Called with the index of a candidate, from 0, and its outcome.
OnOutcome = Callable[[int, Outcome], None]


@dataclass(frozen=True)
class CommandMeasure:
    """A command that scores a checkpoint, with the direction of its score."""

    command: CommandScore | LmEvalScore
    mode: Mode

    def score_of(self, candidate: Candidate, splits: Sequence[str]) -> Outcome:
        """Return the score of a candidate, which is written to a temporary folder, for every split."""
        with ExitStack() as stack:
            try:
                path = stack.enter_context(candidate.written())
            except CheckpointError:
                raise
            except WeightspaceError as error:
                return str(error)
            score = self.command(path)
        return {split: {"score": score} for split in splits}

    def key(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        """Return the command and the files that it names."""
        return {"command": self.command.command, "files": dict(self.command.files()), "folder": str(Path.cwd())}


Measure: TypeAlias = "TaskMeasure | FunctionMeasure | CommandMeasure"


class Evaluator:
    """Scorer of candidates by one measure.

    Args:
        measure: a task, a function of a state dict, or a command.
        evaluations: the cache of scores.
        place: executor of the evaluations.
    """

    def __init__(self, measure: Measure, evaluations: Evaluations, place: Place) -> None:
        self.measure, self._place = measure, place
        uncached = isinstance(measure, FunctionMeasure) and measure.cache_key is None
        self._kept = Evaluations(None) if uncached else evaluations
        self._keys: dict[tuple[str, bool], Mapping[str, Any]] = {}

    def many(
        self, candidates: Sequence[Candidate], splits: Sequence[str], on_outcome: OnOutcome | None = None
    ) -> list[Outcome]:
        """Return the scores of candidates, in order; a merge that is impossible gives the text of its error.

        Raises:
            WeightspaceError: the measure fails.
        """
        report = on_outcome or (lambda number, outcome: None)
        known: list[Outcome] = []
        jobs: list[tuple[int, tuple[Any, ...]]] = []
        for number, candidate in enumerate(candidates):
            keys, found = self._keys_of(candidate, splits)
            known.append(found)
            if keys:
                jobs.append((number, (self.measure, candidate, keys, self._kept, _stamps(keys))))
            else:
                report(number, found)
        done = run_jobs(
            here_or(self._place.executor, self._place.workers),
            _outcome,
            [job for _, job in jobs],
            workers=self._place.workers,
            gpus=self._place.gpus,
            ray_address=self._place.ray_address,
            on_done=lambda at, outcome: report(jobs[at][0], _joined(known[jobs[at][0]], outcome)),
        )
        for (number, _), outcome in zip(jobs, done, strict=True):
            known[number] = _joined(known[number], outcome)
        return known

    @property
    def name(self) -> str:
        """Name of the score that decides."""
        return self.measure.task.objective if isinstance(self.measure, TaskMeasure) else "score"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits on which merges are scored: those of a task, or one for all."""
        return ("validation", "test") if isinstance(self.measure, TaskMeasure) else ("validation",)

    def objective(self, outcome: Outcome, split: str = "validation") -> float | None:
        """Return the score that decides; None if the merge is impossible or its score is not finite."""
        value = math.nan if isinstance(outcome, str) else outcome[split][self.name]
        return value if math.isfinite(value) else None

    def _keys_of(self, candidate: Candidate, splits: Sequence[str]) -> tuple[dict[str, Mapping[str, Any]], Outcome]:
        """Return the cache keys of the evaluations that are missing, and the known part of the outcome."""
        if self._kept.folder is None:
            return {split: {} for split in splits}, {}
        try:
            own = {
                "recipe": candidate.text,
                "files": dict(candidate.files()),
                "reading": candidate.read_as(),
                "mixed": candidate.mixed,
            }
        except CheckpointError:
            raise
        except WeightspaceError as error:
            return {}, str(error)
        keys = {split: {**own, "measure": self._depends(split, mixed=candidate.mixed)} for split in splits}
        scores = {split: self._kept.find(key) for split, key in keys.items()}
        found: Outcome = {split: known for split, known in scores.items() if known is not None}
        return {split: key for split, key in keys.items() if split not in found}, found

    def _depends(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        if (split, mixed) not in self._keys:
            self._keys[split, mixed] = self.measure.key(split, mixed=mixed)
        return self._keys[split, mixed]


def _stamps(keys: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Return path -> size and modification time of the files of the models that cache keys name."""
    found = {path: Path(path).stat() for key in keys.values() for path in key.get("files", ())}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}


def _outcome(
    measure: Measure,
    candidate: Candidate,
    keys: Mapping[str, Mapping[str, Any]],
    kept: Evaluations,
    stamps: Mapping[str, tuple[int, int]],
) -> Outcome:
    """Score a candidate, as a job for workers, which cache the scores before they report them.

    Raises:
        CheckpointError: a file of the models has changed meanwhile.
    """
    splits = tuple(keys)
    if isinstance(measure, CommandMeasure):
        found, reads = measure.score_of(candidate, splits), {}
        if isinstance(found, str):
            return found
    else:
        try:
            state = candidate.state()
        except CheckpointError:
            raise
        except WeightspaceError as error:
            return str(error)
        state = measure.fitted(state, "the merged network")
        if isinstance(measure, FunctionMeasure):  # which may modify the tensors
            state = {name: tensor.clone() for name, tensor in state.items()}
        found, reads = measure.scores(state.items(), splits, mixed=candidate.mixed), measure.reads()
    now = _stamps(keys)
    if changed := [path for path, stamp in stamps.items() if now[path] != stamp]:
        raise CheckpointError(
            f"{changed[0]} has changed while it was scored; expected an unchanged model. Repeat the search once the "
            "model is complete."
        )
    for split, key in keys.items():
        kept.keep(key, found[split], reads)
    return found


def _joined(known: Outcome, outcome: Outcome) -> Outcome:
    """Return the scores on all splits."""
    return outcome if isinstance(known, str) or isinstance(outcome, str) else {**known, **outcome}
