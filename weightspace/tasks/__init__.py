"""Tasks: what a network is for. How to build it, what it is fed, how it is scored.

A user writes one task and hands it to every command; ``digits-*`` and ``fashion-*`` are built in.
"""

from weightspace.tasks.building import blank_network, check_belongs, network_with
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
    "blank_network",
    "carve",
    "check_belongs",
    "load_task",
    "network_with",
    "objective_value",
    "train",
]
