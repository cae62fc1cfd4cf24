"""Tasks: how to build a network, its data and its scores. A user writes one and passes it to every command."""

from weightspace.tasks.building import blank_network, check_belongs, fitted, network_with, shapes_of
from weightspace.tasks.classification import ClassificationTask, Examples, carve
from weightspace.tasks.objectives import Mode, mode_of_name
from weightspace.tasks.placing import PlacedTask, at_home, check_device, placed
from weightspace.tasks.protocol import Split, Task, TrainConfig, objective_value
from weightspace.tasks.scores import scores_of
from weightspace.tasks.training import train
from weightspace.tasks.variants import variant

__all__ = [
    "ClassificationTask",
    "Examples",
    "Mode",
    "PlacedTask",
    "Split",
    "Task",
    "TrainConfig",
    "at_home",
    "blank_network",
    "carve",
    "check_belongs",
    "check_device",
    "fitted",
    "mode_of_name",
    "network_with",
    "objective_value",
    "placed",
    "scores_of",
    "shapes_of",
    "train",
    "variant",
]
