"""Evaluation of candidates by local or remote executors, with a cache so that none is repeated."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from weightspace.errors import CheckpointError
from weightspace.parallel import here_or, run_jobs
from weightspace.soups.candidates import Candidate
from weightspace.soups.fingerprints import fingerprint_of_state
from weightspace.soups.ingredients import Ingredient
from weightspace.soups.measures import FunctionMeasure, TaskMeasure
from weightspace.soups.score_cache import Evaluations, kept_evaluations
from weightspace.soups.scoring import Score, Statistics
from weightspace.tasks.objectives import Mode, function_mode, task_mode
from weightspace.tasks.protocol import Task

#: Split -> name -> score.
Scores = dict[str, Mapping[str, float]]
#: Size and modification time of an ingredient's files.
Stamp: TypeAlias = "tuple[tuple[int, int], ...]"
#: Called with the index of a candidate, from 0, and its scores.
OnScores = Callable[[int, Scores], None]


@dataclass(frozen=True)
class Place:
    """The executor of independent evaluations: the options of ``parallel.run_jobs``."""

    executor: str = "processes"
    workers: int = 1
    gpus: float = 0.0
    ray_address: str | None = None


class Judge:
    """Scorer of the candidates of one soup, with a cache of the scores.

    Args:
        score: a task, or a function of a state dict.
        statistics: treatment of BatchNorm statistics in mixtures.
        cache: whether evaluations are cached on disk; those of a function only if it has a key.
        cache_key: identifies everything that a function's scores depend on.
        place: executor of the evaluations.
        mode: ``"min"`` or ``"max"``, if neither the task nor its objective's name determines the direction.

    Attributes:
        measure: the task or the function, with its mode.

    Raises:
        WeightspaceError: it is unknown whether lower or higher is better, or an option is unknown.
    """

    def __init__(
        self,
        score: Score | Task,
        statistics: Statistics,
        *,
        cache: bool,
        cache_key: str | None,
        place: Place,
        mode: Mode | None = None,
    ) -> None:
        if isinstance(score, Task):
            device, run = "cuda" if place.gpus else None, secrets.token_hex(8)
            self.measure: TaskMeasure | FunctionMeasure = TaskMeasure(
                score, statistics, device, run, task_mode(score, mode)
            )
            self.measure.scorer()  # reports invalid options before anything is read
        else:
            self.measure = FunctionMeasure(score, cache_key, function_mode(score, mode))
            cache = cache and cache_key is not None
        self.place, self._kept = place, kept_evaluations(cache)
        self._keys: dict[tuple[str, bool], Mapping[str, Any]] = {}
        self._digests: dict[int, tuple[Ingredient, str, Stamp]] = {}

    def many(
        self, candidates: Sequence[Candidate], splits: Sequence[str], on_scores: OnScores | None = None
    ) -> list[Scores]:
        """Return the scores of picklable candidates, in order.

        Args:
            candidates: any number of candidates.
            splits: splits to score them on.
            on_scores: called with the scores of each candidate as soon as they are available, in any order.
        """
        asked = [self._asked(candidate, splits) for candidate in candidates]
        known = [self._known(one) for one in asked]
        missing = [number for number, found in enumerate(known) if found is None]
        report = on_scores or (lambda number, scores: None)
        for number, scores in enumerate(known):
            if scores is not None:
                report(number, scores)
        done = run_jobs(
            here_or(self.place.executor, self.place.workers),
            _score,
            [
                (self.measure, candidates[number], asked[number], self._kept, self._stamps(candidates[number]))
                for number in missing
            ],
            workers=self.place.workers,
            gpus=self.place.gpus,
            ray_address=self.place.ray_address,
            on_done=lambda at, scored: report(missing[at], self._keep(asked[missing[at]], *scored)),
        )
        for number, (scores, _) in zip(missing, done, strict=True):
            known[number] = scores
        return [scores for scores in known if scores is not None]

    def one(self, candidate: Candidate, splits: Sequence[str]) -> Scores:
        """Return the scores of a candidate, which is scored in this process if they aren't cached."""
        asked = self._asked(candidate, splits)
        known = self._known(asked)
        return known or _score(self.measure, candidate, asked, self._kept, self._stamps(candidate))[0]

    def kept(self, candidate: Candidate, splits: Sequence[str], score: Callable[[str], Mapping[str, float]]) -> Scores:
        """Return the cached scores of a candidate, or compute them by ``score`` and cache them."""
        asked = self._asked(candidate, splits)
        known = self._known(asked)
        if known is not None:
            return known
        scores = {split: score(split) for split in splits}
        return self._keep(asked, scores, self.measure.reads())

    def value(self, scores: Scores, split: str = "validation") -> float:
        """Return the score that decides; higher is better."""
        return self.measure.value(scores[split])

    def _asked(self, candidate: Candidate, splits: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Return the cache keys of a candidate's evaluations."""
        if self._kept.folder is None:
            return {split: {} for split in splits}
        digests = [self._digest(one) for one in candidate.weights]
        return {
            split: {"weights": digests, **candidate.recipe, **self._depends(split, mixed=candidate.mixed)}
            for split in splits
        }

    def _depends(self, split: str, *, mixed: bool) -> Mapping[str, Any]:
        if (split, mixed) not in self._keys:
            self._keys[split, mixed] = self.measure.key(split, mixed=mixed)
        return self._keys[split, mixed]

    def _digest(self, ingredient: Ingredient) -> str:
        if id(ingredient) not in self._digests:  # keeps the ingredient, so that its id isn't reused
            stamp = ingredient.stamp()
            self._digests[id(ingredient)] = ingredient, fingerprint_of_state(ingredient.load()), stamp
        return self._digests[id(ingredient)][1]

    def _stamps(self, candidate: Candidate) -> list[Stamp] | None:
        """Return the stamps of a candidate's files, taken with their digests, to detect later changes."""
        if self._kept.folder is None:
            return None
        return [self._digests[id(one)][2] for one in candidate.weights]

    def _known(self, asked: Mapping[str, Mapping[str, Any]]) -> Scores | None:
        found: Scores = {}
        for split, key in asked.items():
            if (scores := self._kept.find(key)) is None or not self.measure.has(scores):
                return None
            found[split] = scores
        return found

    def _keep(self, asked: Mapping[str, Mapping[str, Any]], scores: Scores, reads: Mapping[str, str]) -> Scores:
        for split, key in asked.items():
            if self._kept.find(key) is None:
                self._kept.keep(key, scores[split], reads)
        return scores


def _score(
    measure: TaskMeasure | FunctionMeasure,
    candidate: Candidate,
    asked: Mapping[str, Mapping[str, Any]],
    kept: Evaluations,
    stamps: Sequence[Stamp] | None,
) -> tuple[Scores, dict[str, str]]:
    """Score a candidate, as a job for workers, which cache the scores before they report them.

    Returns:
        The scores, and path -> SHA-256 of the files read for them.

    Raises:
        CheckpointError: a file of the candidate has changed since its digest was taken.
    """
    scores = measure.scores(candidate.tensors(measure.check), tuple(asked), mixed=candidate.mixed)
    if stamps is None:
        return scores, {}
    for ingredient, stamp in zip(candidate.weights, stamps, strict=True):
        if ingredient.stamp() != stamp:
            raise CheckpointError(
                f"{ingredient.name} has changed while the soup was made; expected an unchanged checkpoint. "
                "Run the command again once it is complete."
            )
    reads = measure.reads()
    for split, key in asked.items():
        kept.keep(key, scores[split], reads)
    return scores, reads
