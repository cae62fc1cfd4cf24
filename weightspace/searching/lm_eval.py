"""Scores of language models by lm-evaluation-harness, the package ``lm_eval``, in a process of its own.

Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.searching.command_score import CommandScore
from weightspace.soups.file_dependencies import digest_of
from weightspace.tasks.objectives import Mode, function_mode, mode_of_name

#: Prefix of scores that are tasks of the harness and no command.
PREFIX = "lm-eval:"

#: A value of a YAML file that may be a path, in quotes, lists and mappings too.
_WORD = re.compile(r"[^\s\"'\[\]{},]+")


@dataclass(frozen=True)
class LmEvalScore:
    """The mean over tasks of the harness of each one's first metric, negated where lower is better.

    A group of tasks that has no metric counts as the mean of its tasks.

    Attributes:
        tasks: names of tasks or paths of their YAML files, separated by commas.
        device: device that the model runs on.

    Raises:
        WeightspaceError: there are no tasks, or the package isn't installed.
    """

    tasks: str
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.tasks.strip():
            raise WeightspaceError(f"--score {PREFIX} needs tasks, such as {PREFIX}arc_easy,hellaswag; found none.")
        if importlib.util.find_spec("lm_eval") is None:
            raise WeightspaceError(
                f"--score {PREFIX}{self.tasks} needs the package lm_eval. Install it by pip install lm-eval."
            )

    @property
    def command(self) -> str:
        """A text that identifies the score: its tasks, and the version of the package."""
        return f"{PREFIX}{self.tasks} {importlib.metadata.version('lm_eval')} {self.device}"

    def __call__(self, path: Path) -> float:
        """Return the score of a model's folder.

        Raises:
            WeightspaceError: the harness fails, or reports no metric for a task.
        """
        if not path.is_dir():
            raise WeightspaceError(f"lm_eval scores folders of transformers; {path.name} is a file. Merge folders.")
        with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
            words = ("--model", "hf", "--model_args", f"pretrained={path}", "--tasks", self.tasks)
            further = ("--device", self.device, "--output_path", folder)
            command = [sys.executable, "-m", "lm_eval", *words, *further]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                last = next(reversed(done.stderr.strip().splitlines()), "nothing on stderr")
                raise WeightspaceError(f"lm_eval ended with status {done.returncode}: {last[:200]}")
            reports = sorted(Path(folder).rglob("results*.json"))
            if len(reports) != 1:
                raise WeightspaceError(f"lm_eval wrote {len(reports)} reports; expected one.")
            report = json.loads(reports[0].read_text(encoding="utf-8"))
        scores = [_score(name, report) for name in _named(report)]
        return sum(scores) / len(scores)

    def files(self) -> Mapping[str, str]:
        """Return path -> SHA-256 of the YAML files among the tasks, those in folders, and the files that they name."""
        paths = [Path(task) for task in self.tasks.split(",")]
        return {str(path): digest_of(path) for path in _with_named_files(paths)}


def path_score(text: str, device: str) -> CommandScore | LmEvalScore:
    """Return the score that an option names: ``lm-eval:TASKS``, or a command.

    Raises:
        WeightspaceError: as these.
    """
    return LmEvalScore(text.removeprefix(PREFIX), device) if text.startswith(PREFIX) else CommandScore(text)


def _with_named_files(paths: Iterable[Path]) -> list[Path]:
    """Return files, those in folders, and those that YAML files among them name: includes, data, and functions."""
    found: dict[Path, None] = {}
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path.is_dir():
            waiting += sorted(path.rglob("*"))
        elif path.is_file() and path not in found:
            found[path] = None
            if path.suffix in (".yaml", ".yml"):
                text = path.read_text(encoding="utf-8", errors="replace")
                waiting += [file for word in _WORD.findall(text) for file in _files_called(word, path.parent)]
    return list(found)


def _files_called(word: str, folder: Path) -> list[Path]:
    """Return the files that a word in a YAML file of a folder may mean: paths, patterns, and ``module.function``."""
    if "." not in Path(word).name:
        return []
    module = folder / f"{word.rpartition('.')[0]}.py"
    paths = [Path(name) for root in (Path(), folder) for name in sorted(glob(str(root / word)))]
    return [path for path in (*paths, module) if path.is_file()]


def path_mode(score: Any, mode: Mode | None) -> Mode:
    """Return the direction of a score of a checkpoint's path, as ``function_mode`` does for functions.

    Args:
        score: a command, tasks of lm-evaluation-harness, or a function.
        mode: the caller's choice.

    Raises:
        WeightspaceError: the mode is invalid, or missing for a command or function named like a loss.

    Warns:
        WeightspaceWarning: the mode of a command is missing, so that the highest score counts as the best.
    """
    if not isinstance(score, CommandScore) or mode is not None:
        return function_mode(score, mode)
    for word in score.command.replace("{model}", " ").split():
        if mode_of_name(Path(word).stem) == "min":
            raise WeightspaceError(
                f"--score {score.command!r}: {word} is the name of a score for which lower is better, but without a "
                "mode the highest score wins. Give --mode min, or --mode max if it prints a negated value (mode in "
                "Python)."
            )
    warnings.warn(
        "The highest score of the command counts as the best. Give --mode min if lower is better, as for a loss, or "
        "--mode max (mode in Python).",
        WeightspaceWarning,
        stacklevel=5,
    )
    return "max"


def _named(report: Mapping[str, Any]) -> list[str]:
    """Return the tasks and groups of a report that are not part of a group.

    Raises:
        WeightspaceError: there are none.
    """
    parts = {part for group in report.get("group_subtasks", {}).values() for part in group}
    names = [name for name in report.get("results", {}) if name not in parts]
    if not names:
        raise WeightspaceError("lm_eval reports no results.")
    return names


def _score(name: str, report: Mapping[str, Any]) -> float:
    """Return the first metric of a task, negated if lower is better; of a group without one, the mean of its tasks.

    Raises:
        WeightspaceError: there is none.
    """
    for key, value in report.get("results", {}).get(name, {}).items():
        metric = key.partition(",")[0]
        if "," in key and not metric.endswith("_stderr") and isinstance(value, int | float):
            return value if report.get("higher_is_better", {}).get(name, {}).get(metric, True) else -value
    if parts := report.get("group_subtasks", {}).get(name):
        return sum(_score(part, report) for part in parts) / len(parts)
    raise WeightspaceError(f"lm_eval reports no metric of {name}.")
