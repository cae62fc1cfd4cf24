"""Averages of the checkpoints of one training run, and their scores."""

from __future__ import annotations

from weightspace.runs.average import average_run
from weightspace.runs.checkpoints import RunCheckpoint, find_checkpoints
from weightspace.runs.schedules import schedule_weights
from weightspace.runs.windows import WindowScores, score_windows

__all__ = [
    "RunCheckpoint",
    "WindowScores",
    "average_run",
    "find_checkpoints",
    "schedule_weights",
    "score_windows",
]
