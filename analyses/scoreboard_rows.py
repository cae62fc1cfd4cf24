"""Rows of the scoreboard: one method at its defaults or tuned, or a reference, on one suite and seed.

A row is kept in a file as soon as it is known, under a digest of everything that it depends on, and so is every score
within it, by the cache of ``ws.search``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeAlias

import yaml
from merge_settings import (
    EVIDENCE_EXAMPLES,
    LEARNED,
    SEARCH_ENGINE,
    SEARCH_TRIALS,
    SEARCHED,
    TRIALS,
    Entry,
    entries,
    search_recipe,
)
from scoreboard_learned import code_of, learned, settings_of
from suites import Suite

import weightspace as ws
from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.merging import methods as methods_folder
from weightspace.merging.methods import METHODS
from weightspace.searching import SearchOptions, SearchReport
from weightspace.tasks import network_with

#: Row: label, settings, scores by split, and how they were found; or why there are none (left out, or pending).
Row: TypeAlias = dict[str, Any]
_FOLDER = Path(methods_folder.__file__).parent


@dataclass(frozen=True)
class Scorer:
    """A maker of the rows of one suite and seed.

    Attributes:
        suite: the fine-tunes.
        seed: seed of the suite.
        cache: folder of rows, scores and evidence.
        kept_only: whether rows that aren't kept yet are left pending.
    """

    suite: Suite
    seed: int
    cache: Path
    kept_only: bool = False

    @property
    def place(self) -> str:
        """Name of the suite and the seed."""
        return f"{self.suite.joint.name}-{self.seed}"

    def rows(self, labels: tuple[str, ...] = ()) -> Iterator[Row]:
        """Yield all rows: references, every method at its defaults and tuned, those that learn, and the search.

        Args:
            labels: labels of the methods; by default, all.
        """
        yield self._kept("own task", "reference", {}, {}, self._own_task)
        models = {"pretrained": self.suite.base, **{f"only {name}": at for name, at in self.suite.models.items()}}
        for label, path in models.items():
            recipe = {"merge_method": "linear", "models": [{"model": str(path), "parameters": {"weight": 1.0}}]}
            yield self._searched(label, "reference", recipe, {}, ("linear",))
        for entry in entries(len(self.suite.models)):
            if not labels or entry.label in labels:
                yield from self._entry(entry)
        for label in LEARNED:
            if not labels or label in labels:
                yield self._learned(label)
        recipe = search_recipe(self.suite)
        yield self._searched("search", "search", recipe, {}, SEARCHED, trials=SEARCH_TRIALS, engine=SEARCH_ENGINE)

    def _entry(self, entry: Entry) -> Iterator[Row]:
        """Yield the rows of a method."""
        if entry.reason:
            yield {**self._about(entry.label, "default"), "left out": entry.reason}
            return
        try:
            recipe = entry.recipe(self.suite, self._evidence(entry.evidence))
            files = (entry.method, "task_arithmetic") if entry.step else (entry.method,)
            yield self._searched(entry.label, "default", recipe, {}, files)
            if entry.space:
                yield self._searched(entry.label, "tuned", recipe, entry.places(), files, trials=TRIALS)
        except ws.WeightspaceError as error:
            yield {**self._about(entry.label, "default"), "left out": " ".join(str(error).split())}

    def _about(self, label: str, settings: str) -> Row:
        return {"suite": self.suite.joint.name, "seed": self.seed, "label": label, "settings": settings}

    def _searched(
        self,
        label: str,
        settings: str,
        recipe: Mapping[str, Any],
        space: Mapping[str, Any],
        methods: tuple[str, ...],
        *,
        trials: int = 1,
        engine: str = "grid",
    ) -> Row:
        """Return the row of the best of the settings of a recipe, which is kept; without a space, of the recipe."""
        objective, digest = self.suite.joint.objective, self.suite.digest
        options = SearchOptions(engine=engine, trials=trials, seed=self.seed, references=False, cache_key=digest)

        def find() -> Row:
            if trials == 1:
                return {"scores": self._scores(yaml.safe_dump(dict(recipe)))}
            mode = "min" if objective == "loss" else "max"
            report = ws.search(recipe, self._validation, space=space or None, mode=mode, options=options)
            return {"scores": self._scores(report.recipe), **_trials_of(report)}

        content = {"recipe": recipe, "space": space, "trials": trials, "engine": engine}
        return self._kept(label, settings, content, {name: _code(name) for name in methods}, find)

    def _learned(self, label: str) -> Row:
        """Return the row of a method that learns from the tasks' data."""

        def find() -> Row:
            return {"scores": self._scores_of(learned(label, self.suite))}

        try:
            return self._kept(label, "default", settings_of(label), {label: code_of(label)}, find)
        except ws.WeightspaceError as error:
            return {**self._about(label, "default"), "left out": " ".join(str(error).split())}

    def _validation(self, state: ws.StateDict) -> float:
        """Return the objective of a merge on the validation data of all tasks."""
        joint = self.suite.joint
        return joint.score(network_with(joint, state), "validation")[joint.objective]

    def _scores(self, recipe: str) -> dict[str, dict[str, float]]:
        """Return the scores of the merge of a recipe, by split."""
        with TemporaryDirectory() as folder:
            file, merged = Path(folder) / "recipe.yml", Path(folder) / "merged.safetensors"
            file.write_text(recipe)
            ws.merge_files(file, merged)
            return self._scores_of(ws.load_checkpoint(merged))

    def _scores_of(self, state: ws.StateDict) -> dict[str, dict[str, float]]:
        """Return the scores of a merge, by split."""
        network = network_with(self.suite.joint, state)
        return {split: self.suite.joint.score(network, split) for split in ("validation", "test")}

    def _kept(
        self, label: str, settings: str, content: Mapping[str, Any], code: Mapping[str, str], find: Callable[[], Row]
    ) -> Row:
        """Return a row from its file, or find it and write the file; ``code``: digests of the methods' files."""
        plain = json.dumps([content, code, self.suite.digest], default=str)
        for number, path in enumerate((self.suite.base, *self.suite.models.values())):
            plain = plain.replace(str(path), f"model {number}")
        plain = plain.replace(str(self.cache), "")
        digest = hashlib.sha256(plain.encode()).hexdigest()[:16]
        name = f"{label} {settings}".replace(", ", "-").replace(" ", "-")
        path = self.cache / "rows" / self.place / f"{name}-{digest}.json"
        if path.is_file():
            return json.loads(path.read_text())
        if self.kept_only:
            return {**self._about(label, settings), "pending": True}
        began = perf_counter()
        with _scores_in(self.cache / "scores" / hashlib.sha256(json.dumps(code).encode()).hexdigest()[:12]):
            row = {**self._about(label, settings), **find(), "seconds": round(perf_counter() - began, 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as file:
            file.write((json.dumps(row, indent=1) + "\n").encode())
        return row

    def _own_task(self) -> Row:
        """Return the mean over the tasks of each fine-tune's score on its own task, and of its own task only."""
        joint = self.suite.joint
        found: dict[str, dict[str, float]] = {}
        states = {name: ws.load_checkpoint(path) for name, path in self.suite.models.items()}
        for split in ("validation", "test"):
            each = {
                name: joint.parts[name].score(network_with(joint, state), split)[joint.objective]
                for name, state in states.items()
            }
            found[split] = {joint.objective: mean(each.values()), **each}
        return {"scores": found}

    def _evidence(self, kind: str) -> dict[str, str]:
        """Return the file of the statistics of every model on its training data, collected now if it isn't there."""
        if not kind:
            return {}
        found = {}
        for name, path in self.suite.models.items():
            file = self.cache / "evidence" / f"{path.stem}-{kind}-{EVIDENCE_EXAMPLES}.safetensors"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                task, state = self.suite.joint.parts[name], ws.load_checkpoint(path)
                ws.save_checkpoint(ws.collect_evidence(task, state, kind, examples=EVIDENCE_EXAMPLES), file)
            found[name] = str(file)
        return found


def _trials_of(report: SearchReport) -> Row:
    """Return the best settings and all trials of a search."""
    trials = [
        {"values": dict(one.values), "score": next(iter(one.scores.values()), None), "error": one.error}
        for one in report.trials
    ]
    return {"values": dict(report.trials[report.best].values), "trials": trials}


def _code(method: str) -> str:
    """Return the digest of the file of a method."""
    file = _FOLDER / f"{METHODS[method].function.partition(':')[0]}.py"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


@contextmanager
def _scores_in(folder: Path) -> Iterator[None]:
    """Let searches keep their scores in a folder of their own, so that new code of a method doesn't find old ones."""
    before = os.environ.get("WEIGHTSPACE_CACHE")
    os.environ["WEIGHTSPACE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WEIGHTSPACE_CACHE"]
        else:
            os.environ["WEIGHTSPACE_CACHE"] = before
