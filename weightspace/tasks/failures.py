"""Errors of a user's task on its own data, as one-line messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Task

#: Exceptions of networks, losses and loaders if the data doesn't fit.
RAISED = (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)


@contextmanager
def task_errors(task: Task, doing: str) -> Iterator[None]:
    """Turn errors of a task's network, loss or data into a one-line error that names the task.

    Args:
        task: the task whose methods are called in the block.
        doing: description of the block, such as ``"on its training batches"``.

    Raises:
        WeightspaceError: the block raised an error that a task's code can cause.
    """
    try:
        yield
    except WeightspaceError:
        raise
    except RAISED as error:
        line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise WeightspaceError(
            f"Task {task.name!r} failed {doing}: {type(error).__name__}: {line}. Do the inputs have the shape that the "
            "network takes, and are the labels below the number of its outputs?"
        ) from error
