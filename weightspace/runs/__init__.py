"""Averages of the checkpoints of one training run, and their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.runs.average import average_run
    from weightspace.runs.checkpoints import RunCheckpoint, find_checkpoints
    from weightspace.runs.schedules import schedule_weights
    from weightspace.runs.windows import WindowScores, score_windows

#: Public name -> the file that defines it.
_HOMES = {
    "average_run": "average",
    "RunCheckpoint": "checkpoints",
    "find_checkpoints": "checkpoints",
    "schedule_weights": "schedules",
    "WindowScores": "windows",
    "score_windows": "windows",
}

__all__ = [
    "RunCheckpoint",
    "WindowScores",
    "average_run",
    "find_checkpoints",
    "schedule_weights",
    "score_windows",
]

__getattr__ = resolver(__name__, _HOMES)
