"""Variants of a task: different learning rates and augmentations for the fine-tunes of a soup."""

from __future__ import annotations

from dataclasses import replace

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.tasks.classification import ClassificationTask
from weightspace.tasks.protocol import Task


def variant(task: Task, *, learning_rate: float | None = None, augmentation: str | None = None) -> Task:
    """Return the task with another learning rate or augmentation, for diverse fine-tunes to average.

    Args:
        task: a ``ClassificationTask``, if anything is to be changed.
        learning_rate: replaces that of the recipe.
        augmentation: name in the task's ``augmentations``.

    Raises:
        WeightspaceError: the task has no such augmentation, or isn't a ``ClassificationTask``, or the rate isn't
            positive.
    """
    if learning_rate is None and augmentation is None:
        return task
    if not isinstance(task, ClassificationTask):
        raise WeightspaceError(
            f"Task {task.name!r} is a {type(task).__name__}; expected a ClassificationTask, whose learning rate and "
            "augmentation can be changed."
        )
    if learning_rate is not None:
        if not 0 < learning_rate < float("inf"):
            raise WeightspaceError(f"Found a learning rate of {learning_rate}; expected a positive number.")
        task = replace(task, recipe=replace(task.recipe, learning_rate=learning_rate))
    if augmentation is not None:
        if not task.augmentations:
            raise WeightspaceError(f"Task {task.name!r} has no augmentations to choose from; found {augmentation!r}.")
        if augmentation not in task.augmentations:
            raise unknown(f"augmentation of task {task.name!r}:", augmentation, task.augmentations)
        task = replace(task, augment=task.augmentations[augmentation])
    return task
