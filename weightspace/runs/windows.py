"""Scores of the averages of the last one, two, three … checkpoints of a run."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from weightspace.arguments import checked
from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.checkpoints.training_folders import find_training
from weightspace.errors import WeightspaceError
from weightspace.merging import OutputOptions, ReadingOptions, merge_files
from weightspace.progress import Progress
from weightspace.runs.checkpoints import RunCheckpoint
from weightspace.runs.schedules import schedule_weights
from weightspace.searching.lm_eval import path_mode
from weightspace.soups.candidates import Alone
from weightspace.soups.evaluation import Judge, Place
from weightspace.soups.ingredients import Ingredient
from weightspace.soups.scoring import Statistics
from weightspace.tasks.objectives import Mode, task_mode
from weightspace.tasks.protocol import Task

#: Splits of a task; the score on the first one decides.
SPLITS = ("validation", "test")

#: Scores a checkpoint, given its path.
PathScore = Callable[[Path], float]


@dataclass(frozen=True)
class WindowScores:
    """Scores of the averages of the last one, two, three … checkpoints.

    Attributes:
        first_steps: the first step of each window; entry ``n`` is that of the last ``n + 1`` checkpoints.
        last_step: the last step, common to all.
        schedule: the schedule of the weights.
        scores: split -> score of each window; for a function of a path, the only split is ``score``.
        objective: name of the score.
        mode: whether a lower (``"min"``) or a higher (``"max"``) score is better.
    """

    first_steps: tuple[int, ...]
    last_step: int
    schedule: str
    scores: Mapping[str, tuple[float, ...]]
    objective: str
    mode: Mode

    @property
    def best(self) -> int:
        """Number of checkpoints of the best window by the first split; of equal ones, the smallest number."""
        values = next(iter(self.scores.values()))
        return 1 + values.index((min if self.mode == "min" else max)(values))

    def save(self, path: str | Path) -> None:
        """Write the scores as ``.json``.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        if Path(path).suffix.lower() != ".json":
            raise WeightspaceError(f"Scores of windows are a .json file; found {Path(path).name!r}.")
        with replacing_file(Path(path)) as file:
            file.write((json.dumps({**asdict(self), "best": self.best}, indent=1) + "\n").encode())


@checked
def score_windows(
    checkpoints: Sequence[RunCheckpoint],
    score: Task | PathScore,
    *,
    schedule: str = "uniform",
    mode: Mode | None = None,
    statistics: Statistics = "auto",
    cache: bool = True,
    reading: ReadingOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> WindowScores:
    """Score the averages of the last one, two, three … checkpoints, each written to a temporary folder.

    Args:
        checkpoints: from ``find_checkpoints``, by increasing step.
        score: a task, or a function that maps a checkpoint's path to its score.
        schedule: as for ``average_run``, but no file of weights.
        mode: ``"min"`` or ``"max"`` of the score; by default that of the task, and ``"max"`` for a function
            or command; those named like a loss need one.
        statistics: treatment of BatchNorm statistics in averages; see ``greedy_soup``.
        cache: whether scores of a task are kept on disk and reused.
        reading: as for ``merge_files``.
        on_progress: called after each ``"window"``, with the score.

    Raises:
        CheckpointError: as ``merge_files``.
        WeightspaceError: the schedule is a file, there are no checkpoints, the mode is unknown, or a score isn't a
            finite number.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.runs import find_checkpoints, score_windows
        >>> for step, value in {10: 4.0, 20: 1.0, 30: 2.0}.items():
        ...     ws.save_checkpoint({"w": torch.tensor([value])}, f"run/step_{step}.safetensors")
        >>> loss = lambda path: abs(float(ws.load_checkpoint(path)["w"]) - 1.5)
        >>> found = score_windows(find_checkpoints("run"), loss, mode="min")
        >>> found.scores, found.best
        ({'score': (0.5, 0.0, 0.8333332538604736)}, 2)
    """
    _check(checkpoints, schedule)
    is_task = isinstance(score, Task)
    scorer = (
        _TaskScorer(score, mode, statistics, cache=cache) if isinstance(score, Task) else _FunctionScorer(score, mode)
    )
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
        for size in range(1, len(checkpoints) + 1):
            path = _averaged(checkpoints[-size:], schedule, Path(folder) / str(size), reading, as_file=is_task)
            values = scorer.scores(path, mixed=size > 1)
            for split, value in values.items():
                found.setdefault(split, []).append(value)
            if on_progress is not None:
                on_progress(Progress("window", size, len(checkpoints), next(iter(values.values()))))
    firsts = tuple(checkpoint.step for checkpoint in reversed(checkpoints))
    scores = {split: tuple(values) for split, values in found.items()}
    return WindowScores(firsts, checkpoints[-1].step, schedule, scores, scorer.objective, scorer.mode)


def _check(checkpoints: Sequence[RunCheckpoint], schedule: str) -> None:
    """Check that there are checkpoints, and weights for any number of them."""
    if not checkpoints:
        raise WeightspaceError("Expected at least one checkpoint to score; found none.")
    if os.path.isfile(schedule):
        raise WeightspaceError(
            f"The weights in {schedule} are for one number of checkpoints; windows of all sizes need a schedule, such "
            "as uniform or wsm:cosine."
        )


def _averaged(
    checkpoints: Sequence[RunCheckpoint], schedule: str, path: Path, reading: ReadingOptions | None, *, as_file: bool
) -> Path:
    """Write the average of some checkpoints, and return its path.

    A single checkpoint stays where it is, unless it is in a format of training, which a scoring program may not read.
    """
    first = checkpoints[0].path
    trained = first.is_dir() and find_training(first) is not None
    if len(checkpoints) == 1 and not trained:
        return first
    is_file = first.is_file() or (trained and not (first / "config.json").is_file())
    out = path.with_suffix(".safetensors") if as_file or is_file else path
    merge_files(
        [checkpoint.path for checkpoint in checkpoints],
        out,
        weights=schedule_weights(schedule, len(checkpoints)),
        reading=reading,
        output=OutputOptions(hashes=False),
    )
    return out


@dataclass(frozen=True)
class _Average(Alone):
    """The average of several checkpoints, read from its file; its BatchNorm statistics don't fit its activations."""

    mixed = True


class _TaskScorer:
    """Scores by a task, with a cache."""

    def __init__(self, task: Task, mode: Mode | None, statistics: Statistics, *, cache: bool) -> None:
        self._judge = Judge(task, statistics, cache=cache, cache_key=None, place=Place(), mode=mode)
        self.objective = task.objective
        self.mode: Mode = task_mode(task, mode)

    def scores(self, path: Path, *, mixed: bool) -> dict[str, float]:
        """Return the scores of a checkpoint on each split."""
        ingredient = Ingredient(str(path), path, self._judge.measure.shapes)
        self._judge.measure.check(ingredient.load(), ingredient.name)
        found = self._judge.one(_Average(ingredient) if mixed else Alone(ingredient), SPLITS)
        return {split: float(found[split][self.objective]) for split in SPLITS}


class _FunctionScorer:
    """Scores by a function of a path."""

    objective = "score"

    def __init__(self, function: PathScore, mode: Mode | None) -> None:
        self.function = function
        self.mode: Mode = path_mode(function, mode)

    def scores(self, path: Path, *, mixed: bool) -> dict[str, float]:
        """Return the score of a checkpoint."""
        value = float(self.function(path))
        if not math.isfinite(value):
            raise WeightspaceError(f"The score of {path.name} is {value}; expected a finite number.")
        return {"score": value}
