"""Scores of language models by lm-evaluation-harness, the package ``lm_eval``, in a process of its own.

Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.searching.command_score import CommandScore
from weightspace.soups.file_dependencies import digest_of
from weightspace.tasks.objectives import Mode, function_mode

#: Prefix of scores that are tasks of the harness and no command.
PREFIX = "lm-eval:"


@dataclass(frozen=True)
class LmEvalScore:
    """The mean over tasks of the harness of each one's first metric, negated where lower is better.

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
        """Return path -> SHA-256 of the YAML files among the tasks."""
        paths = [Path(task) for task in self.tasks.split(",") if Path(task).is_file()]
        return {str(path): digest_of(path) for path in paths}


def path_score(text: str, device: str) -> CommandScore | LmEvalScore:
    """Return the score that an option names: ``lm-eval:TASKS``, or a command.

    Raises:
        WeightspaceError: as these.
    """
    return LmEvalScore(text.removeprefix(PREFIX), device) if text.startswith(PREFIX) else CommandScore(text)


def path_mode(score: Any, mode: Mode | None) -> Mode:
    """Return the direction of a score of a checkpoint's path, as ``function_mode`` does for functions.

    Args:
        score: a command, tasks of lm-evaluation-harness, or a function.
        mode: the caller's choice.

    Raises:
        WeightspaceError: the mode is invalid, or missing for a command, whose number may be an accuracy or a loss.
    """
    if isinstance(score, CommandScore) and mode is None:
        raise WeightspaceError(
            f"--score {score.command!r}: whether higher or lower is better is unknown. Give --mode min, as for a loss, "
            "or --mode max, as for an accuracy (mode in Python)."
        )
    return function_mode(score, mode)


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
    """Return the first metric of a task, negated if lower is better.

    Raises:
        WeightspaceError: it has none.
    """
    for key, value in report["results"][name].items():
        metric = key.partition(",")[0]
        if "," in key and not metric.endswith("_stderr") and isinstance(value, int | float):
            return value if report.get("higher_is_better", {}).get(name, {}).get(metric, True) else -value
    raise WeightspaceError(f"lm_eval reports no metric of {name}.")
