"""Tasks: what a network is for. How to build it, what it is fed, how it is scored.

A user writes one task and hands it to every command; ``digits-*`` and ``fashion-*`` are built in.
"""

from weightspace.tasks.classification import ClassificationTask, Examples, carve
from weightspace.tasks.loading import TASKS, load_task
from weightspace.tasks.protocol import Recipe, Split, Task, objective_value
from weightspace.tasks.training import EpochReport, train

__all__ = [
    "TASKS",
    "ClassificationTask",
    "EpochReport",
    "Examples",
    "Recipe",
    "Split",
    "Task",
    "carve",
    "load_task",
    "objective_value",
    "train",
]
