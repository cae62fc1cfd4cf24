"""The scores of a task as plain numbers by name, whatever types a user's ``score`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from weightspace.errors import WeightspaceError
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Split, Task


def scores_of(task: Task, module: nn.Module, split: str) -> dict[str, float]:
    """Return a task's scores of a network on a split or a shift.

    Raises:
        WeightspaceError: its ``score`` doesn't return a mapping from names to numbers.
    """
    with task_errors(task, f"when it scored a network on its {split} data"):
        found: object = task.score(module, cast(Split, split))
    if not isinstance(found, Mapping):
        raise WeightspaceError(
            f"The score of task {task.name!r} returned a {type(found).__name__}; expected numbers by name, as in "
            "{'loss': 0.31, 'accuracy': 0.9}."
        )
    scores = {}
    for name, value in found.items():
        try:
            scores[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor of several numbers
            raise WeightspaceError(
                f"The score {name!r} of task {task.name!r} is a {type(value).__name__}; expected one number."
            ) from error
    return scores
