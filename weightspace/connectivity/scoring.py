"""The two scores that curves, planes and matrices are made of: a loss always, an accuracy where there is one."""

from __future__ import annotations

from torch import nn

from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Split, Task
from weightspace.tasks.scores import scores_of


def scored(task: Task, network: nn.Module, split: Split) -> tuple[float, float | None]:
    """Return the loss in nats and the accuracy as a share, None if the task has none.

    Raises:
        WeightspaceError: the task's scores have no loss, or are no numbers by their names.
    """
    scores = scores_of(task, network, split)
    if "loss" not in scores:
        raise WeightspaceError(
            f"The scores of task {task.name!r} are {', '.join(scores) or 'none'}; expected 'loss' among them."
        )
    return scores["loss"], scores.get("accuracy")
