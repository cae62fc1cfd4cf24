"""``search``: the recipe whose merge scores best on validation data."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.arguments import checked
from weightspace.checkpoints.yaml_file import plain_data, read_yaml
from weightspace.errors import WeightspaceError, warn_caller
from weightspace.merging import ReadingOptions
from weightspace.merging.plan.options import MEMORY
from weightspace.progress import Progress
from weightspace.searching.candidates import Candidate, forget_tensors
from weightspace.searching.command_score import CommandScore
from weightspace.searching.engines import make_engine
from weightspace.searching.evaluation import CommandMeasure, Evaluator, Measure
from weightspace.searching.lm_eval import LmEvalScore, path_mode
from weightspace.searching.noise import Gain, gain_over
from weightspace.searching.references import Reference, models_of, reason_for_none, references_of
from weightspace.searching.report import SearchReport, SearchRow, SearchTrial
from weightspace.searching.space import SearchSpace, Values, read_space
from weightspace.searching.trials import SPLIT, Trials
from weightspace.soups.evaluation import Place
from weightspace.soups.measures import FunctionMeasure, TaskMeasure
from weightspace.soups.score_cache import Evaluations, kept_evaluations
from weightspace.soups.scoring import Score, Statistics
from weightspace.tasks.objectives import Mode, function_mode, task_mode
from weightspace.tasks.parts import part_of
from weightspace.tasks.protocol import Task

#: A task, several, a function of a state dict, or a command.
Scores: TypeAlias = "Task | Sequence[Task] | Score | CommandScore | LmEvalScore"

#: Engines whose proposals don't depend on scores, so that candidates can be dropped early.
_LISTED = ("grid", "random")


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search besides what is merged and how it is scored.

    Attributes:
        engine: a name in ``ENGINES``; None: ``nsga2`` for several tasks, else ``cma-es``.
        trials: maximum number of candidates.
        seconds: time after which no further candidate is begun; None: no limit.
        halving: score all candidates on a ninth of the validation data, the best third on a third of it, and the best
            third of those on all of it; for the engines ``grid`` and ``random``.
        seed: seed of the engine.
        references: also score the single models, their mean, task arithmetic with ten scaling factors, and TIES.
        statistics: treatment of BatchNorm statistics in merges; see ``greedy_soup``.
        cache: keep scores in ``$WEIGHTSPACE_CACHE/evaluations`` and reuse them.
        cache_key: identifies everything that a function's scores depend on; without it, they aren't cached.
        place: executor of the evaluations.
        memory: memory limit in bytes of merges that are written to files, for a command.

    Example:
        >>> from weightspace.searching import SearchOptions
        >>> SearchOptions(engine="grid", trials=9).engine
        'grid'
    """

    engine: str | None = None
    trials: int = 50
    seconds: float | None = None
    halving: bool = False
    seed: int = 0
    references: bool = True
    statistics: Statistics = "auto"
    cache: bool = True
    cache_key: str | None = None
    place: Place = field(default_factory=Place)
    memory: int = MEMORY


@checked
def search(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    score: Scores,
    *,
    space: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    mode: Mode | None = None,
    options: SearchOptions | None = None,
    reading: ReadingOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchReport:
    """Search the values in a recipe for which the merge scores best on validation data.

    The best candidate is compared with simple merges of the same models on validation and on test data. An interrupted
    search that is repeated finds its scores in the cache.

    Args:
        recipe: a recipe (``.yml``, or its content), in which ``{search: [low, high]}`` or ``{choices: [a, b]}`` stands
            in place of values.
        score: a task, several tasks, a function of a state dict, a ``CommandScore``, or an ``LmEvalScore``.
        space: searched values by place, such as ``models[0].parameters.weight``, in a file or a mapping.
        mode: ``"min"`` or ``"max"``; by default that of the task, and ``"max"`` for a function or command; those
            named like a loss need one.
        options: the engine, its budget, and how candidates are scored.
        reading: options for reading the models.
        on_progress: called after each ``"trial"``, with its objective and the ``share`` of the validation data.

    Raises:
        CheckpointError: a model cannot be read, or doesn't match the task's network.
        WeightspaceError: the recipe, the space or an option is invalid; no candidate can be merged.

    Warns:
        WeightspaceWarning: the gain over the best reference is within its noise.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.searching import SearchOptions
        >>> for name, value in {"a": 0.0, "b": 1.0}.items():
        ...     ws.save_checkpoint({"w": torch.tensor([value])}, f"{name}.safetensors")
        >>> recipe = {
        ...     "merge_method": "task_arithmetic",
        ...     "base_model": "a.safetensors",
        ...     "models": [{"model": "b.safetensors", "parameters": {"weight": 1}}],
        ...     "parameters": {"lambda": {"search": [0, 1]}},
        ... }
        >>> options = SearchOptions(engine="grid", trials=11)
        >>> found = ws.search(recipe, lambda state: -float((state["w"] - 0.3) ** 2), options=options)
        >>> found.trials[found.best].values
        {'parameters.lambda': 0.3}
    """
    options, began = options or SearchOptions(), time.monotonic()
    searched = space_of(recipe, space)
    evaluators = {name: _evaluator(measure, options) for name, measure in _measures(score, mode, options).items()}
    try:
        return _Search(searched, evaluators, options, reading or ReadingOptions(), on_progress).report(began)
    finally:
        forget_tensors()
        for evaluator in evaluators.values():
            if not isinstance(evaluator.measure, CommandMeasure):
                evaluator.measure.forget()


class _Search:
    """A search."""

    def __init__(
        self,
        space: SearchSpace,
        evaluators: Mapping[str, Evaluator],
        options: SearchOptions,
        reading: ReadingOptions,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.space, self.evaluators, self.options, self.reading = space, evaluators, options, reading
        self.engine = options.engine or ("nsga2" if len(evaluators) > 1 else "cma-es")
        deadline = None if options.seconds is None else time.monotonic() + options.seconds
        self.trials = Trials(
            space, evaluators, self._candidate, options.trials, options.place.workers, deadline, on_progress
        )

    def report(self, began: float) -> SearchReport:
        """Search, compare with the references, and return the report."""
        self._search()
        front = self._front()
        best = self._best(front)
        text = self.space.written(best.values)
        references = self._references(best)
        rows = [self._row(one.name, one.note, one.text, mixed=one.mixed) for one in references]
        rows.append(self._row("best of the search", f"trial {best.index + 1}", text))
        gain, compared = self._gain(text, references, rows)
        if len(self.evaluators) > 1:
            compared = self._dominating(front, rows)
        if gain is not None and gain.is_noise:
            rival = f"over {compared!r} on the validation data"
            found = f"The gain {rival} is within its noise" if gain.value > 0 else f"No gain {rival}"
            warn_caller(
                f"{found}: {gain.value:+.3g} (95 % interval {gain.low:+.3g} to {gain.high:+.3g}). Prefer the simpler "
                "merge, or use more data or trials."
            )
        return SearchReport(
            engine=self.engine,
            seed=self.options.seed,
            objectives={task: evaluator.name for task, evaluator in self.evaluators.items()},
            modes={task: evaluator.measure.mode for task, evaluator in self.evaluators.items()},
            trials=tuple(self.trials.done),
            best=best.index,
            front=tuple(trial.index for trial in front),
            rows=tuple(rows),
            recipe=text,
            gain=gain,
            compared=compared,
            seconds=time.monotonic() - began,
            unreferenced=reason_for_none(self._candidate(text).recipe) if self.options.references else "",
        )

    def _dominating(self, front: Sequence[SearchTrial], rows: Sequence[SearchRow]) -> str:
        """Return the name of a reference that is better than every trial of the front, and warn of it."""
        signs = [-1 if evaluator.measure.mode == "min" else 1 for evaluator in self.evaluators.values()]
        points = [tuple(self.trials.values_of(trial) or ()) for trial in front]
        for row in rows[:-1]:
            found = [evaluator.objective(dict(row.scores[task])) for task, evaluator in self.evaluators.items()]
            own = tuple(sign * value for sign, value in zip(signs, found, strict=True) if value is not None)
            if len(own) == len(signs) and all(_covers(own, point) and own != point for point in points):
                warn_caller(
                    f"{row.name!r} ({row.note or 'a reference'}) is at least as good on all tasks as every merge of "
                    "the front on the validation data, and better on one. Prefer it, or use more trials."
                )
                return row.name
        return ""

    def _models(self, values: Values) -> list[str]:
        """Return the models of the merge with these values, and of those with another choice of one of them."""
        choices = [(one.name, choice) for one in self.space.dimensions for choice in one.choices]
        texts = [self.space.written({**values, **other}) for other in ({}, *({name: one} for name, one in choices))]
        found: list[str] = []
        for text in dict.fromkeys(texts):
            with suppress(WeightspaceError):  # an impossible combination
                found += models_of(self._candidate(text).recipe)
        return list(dict.fromkeys(found))

    def _candidate(self, text: str) -> Candidate:
        return Candidate(text, self.space.where, self.reading, memory=self.options.memory)

    def _search(self) -> None:
        """Make the trials.

        Raises:
            WeightspaceError: an option doesn't fit, or no candidate can be merged.
        """
        options = self.options
        if not isinstance(options.trials, int) or options.trials < 1:
            raise WeightspaceError(f"trials is {options.trials!r}; expected a whole number of at least 1.")
        if options.seconds is not None and options.seconds <= 0:
            raise WeightspaceError(f"seconds is {options.seconds!r}; expected a number above 0, or None for no limit.")
        engine = make_engine(
            self.engine,
            self.space.dimensions,
            trials=options.trials,
            objectives=len(self.evaluators),
            seed=options.seed,
        )
        if options.halving:
            self.trials.halve(engine, self._on_part)
        else:
            self.trials.run(engine)
        if not self._front():
            error = next(trial.error for trial in self.trials.done if trial.error)
            raise WeightspaceError(f"No candidate can be merged and scored. The first one: {error}")

    def _on_part(self, parts: int) -> Mapping[str, Evaluator]:
        """Return evaluators by one part of the validation data.

        Raises:
            WeightspaceError: the engine learns from scores, or a score has no parts.
        """
        if self.engine not in _LISTED:
            raise WeightspaceError(
                f"Successive halving drops candidates before they are scored on all data, from which the engine "
                f"{self.engine} cannot learn; expected grid or random."
            )
        found = {}
        for name, evaluator in self.evaluators.items():
            measure = evaluator.measure
            part = part_of(measure.task, 0, parts) if isinstance(measure, TaskMeasure) else None
            if not isinstance(measure, TaskMeasure) or part is None:
                raise WeightspaceError(
                    f"Successive halving needs parts of the validation data; {name} has none. Give the task a method "
                    "part(index, parts), or leave halving out."
                )
            found[name] = _evaluator(replace(measure, task=part, run=secrets.token_hex(8)), self.options)
        return found

    def _front(self) -> list[SearchTrial]:
        """Return the fully scored trials that no other one beats on all tasks, of equal ones the first."""
        scored = [(trial, self.trials.values_of(trial)) for trial in self.trials.done if trial.share == 1]
        possible = [(trial, tuple(values)) for trial, values in scored if values is not None]
        front: list[tuple[SearchTrial, tuple[float, ...]]] = []
        for trial, values in possible:
            if not any(_covers(other, values) for _, other in possible if other != values) and not any(
                other == values for _, other in front
            ):
                front.append((trial, values))
        return [trial for trial, _ in front]

    def _best(self, front: Sequence[SearchTrial]) -> SearchTrial:
        """Return the trial of the front with the best mean of scores, each scaled to its range on the front."""
        values = [self.trials.values_of(trial) or [] for trial in front]
        bounds = [(min(column), max(column)) for column in zip(*values, strict=True)]
        means = [
            sum((value - low) / ((high - low) or 1.0) for value, (low, high) in zip(row, bounds, strict=True))
            for row in values
        ]
        return front[means.index(max(means))]

    def _references(self, best: SearchTrial) -> list[Reference]:
        """Return the references for a trial, of each name the one with the best mean score on the validation data."""
        if not self.options.references:
            return []
        recipe = self._candidate(self.space.written(best.values)).recipe
        references = references_of(recipe, self._models(best.values))
        means = [0.0] * len(references)
        for evaluator in self.evaluators.values():
            sign = -1 if evaluator.measure.mode == "min" else 1
            for number, outcome in enumerate(evaluator.many([self._of(one) for one in references], SPLIT)):
                value = evaluator.objective(outcome)
                means[number] += float("-inf") if value is None else sign * value
        chosen: dict[str, int] = {}
        for number, one in enumerate(references):
            if means[number] > float("-inf") and means[number] > means[chosen.setdefault(one.name, number)]:
                chosen[one.name] = number
        return [references[number] for number in chosen.values() if means[number] > float("-inf")]

    def _of(self, reference: Reference) -> Candidate:
        return replace(self._candidate(reference.text), mixed=reference.mixed)

    def _row(self, name: str, note: str, text: str, *, mixed: bool = True) -> SearchRow:
        """Return a row of the table, with scores on all splits."""
        candidate = replace(self._candidate(text), mixed=mixed)
        scores = {}
        for task, evaluator in self.evaluators.items():
            outcome = evaluator.many([candidate], evaluator.splits)[0]
            if isinstance(outcome, str):
                raise WeightspaceError(outcome)
            scores[task] = outcome
        return SearchRow(name, note, scores, text)

    def _gain(self, text: str, references: Sequence[Reference], rows: Sequence[SearchRow]) -> tuple[Gain | None, str]:
        """Return the gain over the best reference, if its noise can be estimated, and the name of the reference."""
        evaluator = next(iter(self.evaluators.values()))
        measure = evaluator.measure
        if not references or len(self.evaluators) > 1:
            return None, ""
        sign = -1 if measure.mode == "min" else 1
        scores = [
            sign * (evaluator.objective(dict(row.scores[task])) or 0.0) for row in rows[:-1] for task in row.scores
        ]
        best = references[scores.index(max(scores))]
        if not isinstance(measure, TaskMeasure):
            return None, best.name
        other = self._of(best).state(), best.mixed
        mine = self._candidate(text).state(), True
        return gain_over(measure, mine, other, seed=self.options.seed), best.name


def _covers(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether no score is lower than the other's."""
    return all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def space_of(
    recipe: str | os.PathLike[str] | Mapping[str, Any], space: str | os.PathLike[str] | Mapping[str, Any] | None
) -> SearchSpace:
    """Return the search space of a recipe, with further searched values."""
    documents, where = _content(recipe, "the recipe")
    if space is None:
        return read_space(documents, where)
    further, further_where = _content(space, "the space")
    further = further[0] if len(further) == 1 else further
    return read_space(documents, where, further, further_where)


def _content(given: str | os.PathLike[str] | Mapping[str, Any], name: str) -> tuple[list[Any], str]:
    """Return the documents of a file or of its content, and their name in errors."""
    if isinstance(given, Mapping):
        return [plain_data(given, name)], name
    return read_yaml(Path(given)), os.fspath(given)


def _measures(score: Scores, mode: Mode | None, options: SearchOptions) -> dict[str, Measure]:
    """Return the measures by name."""
    if isinstance(score, CommandScore | LmEvalScore):
        return {"score": CommandMeasure(score, path_mode(score, mode))}
    tasks = [score] if isinstance(score, Task) else list(score) if isinstance(score, Sequence) else []
    if not tasks and (isinstance(score, type) or hasattr(score, "state_dict")):
        found = f"class {score.__name__}" if isinstance(score, type) else f"network {type(score).__name__}"
        raise WeightspaceError(
            f"search: score is the {found}; expected a task (an object, such as ClassificationTask(…)), a list of "
            "tasks, or a function of a state dict."
        )
    if not tasks and callable(score):
        return {"score": FunctionMeasure(score, options.cache_key, function_mode(score, mode))}
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise WeightspaceError(
            f"Expected a task, a list of tasks, a function of a state dict or a CommandScore; found {score!r:.60}."
        )
    if len({task.name for task in tasks}) < len(tasks):
        raise WeightspaceError(f"Two of the tasks are called {tasks[0].name!r}; expected different names.")
    device = "cuda" if options.place.gpus else None
    make = partial(TaskMeasure, statistics=options.statistics, device=device)
    return {task.name: make(task, run=secrets.token_hex(8), mode=task_mode(task, mode)) for task in tasks}


def _evaluator(measure: Measure, options: SearchOptions) -> Evaluator:
    evaluations: Evaluations = kept_evaluations(options.cache)
    return Evaluator(measure, evaluations, options.place)
