"""Tasks: what a network is for. How to build it, what it is fed, how it is scored.

A user writes one task and hands it to every command; ``digits-*`` and ``fashion-*`` are built in; ``clip_task`` makes
one of an open_clip model and images.
"""

from weightspace.tasks.building import blank_network, check_belongs, network_with
from weightspace.tasks.classification import ClassificationTask, Examples, carve
from weightspace.tasks.clip_tasks import clip_task
from weightspace.tasks.loading import TASKS, load_task
from weightspace.tasks.objectives import Mode, mode_of_name
from weightspace.tasks.placing import PlacedTask, at_home, check_device, placed
from weightspace.tasks.protocol import Split, Task, TrainConfig, objective_value
from weightspace.tasks.scores import scores_of
from weightspace.tasks.text import Texts, text_task
from weightspace.tasks.training import EpochReport, train
from weightspace.tasks.variants import variant

__all__ = [
    "TASKS",
    "ClassificationTask",
    "EpochReport",
    "Examples",
    "Mode",
    "PlacedTask",
    "Split",
    "Task",
    "Texts",
    "TrainConfig",
    "at_home",
    "blank_network",
    "carve",
    "check_belongs",
    "check_device",
    "clip_task",
    "load_task",
    "mode_of_name",
    "network_with",
    "objective_value",
    "placed",
    "scores_of",
    "text_task",
    "train",
    "variant",
]
