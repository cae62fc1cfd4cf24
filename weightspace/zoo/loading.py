"""Tasks by name: built-in ones, or ``file.py:object`` for a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weightspace.arguments import checked
from weightspace.errors import WeightspaceError
from weightspace.sources import BUNDLED_TASKS, FOLDER_TASKS, TASK_NAMES, unknown_task
from weightspace.tasks.protocol import Task
from weightspace.user_code import is_user_code, load_object
from weightspace.zoo.digits import digits_cnn, digits_mlp
from weightspace.zoo.fashion import fashion_cnn, fashion_mlp, vit_fashion
from weightspace.zoo.fashion_clip import fashion_clip
from weightspace.zoo.glosses import llama_glosses

#: Name on the command line -> builder without arguments; the data comes with the task.
_BUNDLED: Mapping[str, Callable[[], Task]] = dict(zip(BUNDLED_TASKS, (digits_mlp, digits_cnn), strict=True))
#: Name on the command line -> builder that takes the data folder, None for the default ones.
_FROM_FOLDER: Mapping[str, Callable[[Path | None], Task]] = dict(
    zip(FOLDER_TASKS, (fashion_mlp, fashion_cnn, fashion_clip, vit_fashion, llama_glosses), strict=True)
)
#: Names of the built-in tasks.
TASKS: tuple[str, ...] = TASK_NAMES

_MEMBERS = ("name", "objective", "example_args", "network", "score", "batches", "loss")


@checked
def load_task(source: str, *, data: str | Path | None = None) -> Task:
    """Return the task given by ``source``.

    Args:
        source: a name in ``TASKS``, or ``file.py:object``, where the object is a task or returns one.
        data: folder of Fashion-MNIST, by default ``$WEIGHTSPACE_DATA``, then Debian's; for ``llama-glosses`` that of
            WordNet, by default ``$WEIGHTSPACE_WORDNET``, then Debian's.

    Raises:
        WeightspaceError: the task doesn't exist, its data is missing, or the user's object isn't a task.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> task.name, [tuple(argument.shape) for argument in task.example_args]
        ('digits-mlp', [(4, 1, 8, 8)])
    """
    folder = None if data is None else Path(data)
    if source in _FROM_FOLDER:
        return _FROM_FOLDER[source](folder)
    if folder is not None:
        raise WeightspaceError(
            f"Task {source!r} uses no data folder, but {folder} was given. Tasks that do: {', '.join(_FROM_FOLDER)}."
        )
    if source in _BUNDLED:
        return _BUNDLED[source]()
    if is_user_code(source):
        return _as_task(load_object(source, _may_be_task), source)
    raise unknown_task(source)


def _as_task(found: Any, source: str) -> Task:
    """Return a user's object as a task, calling it first if it is a class or function."""
    task: Any = found
    if isinstance(found, type) or (callable(found) and not hasattr(found, "score")):
        try:
            task = found()
        except Exception as error:
            raise WeightspaceError(f"Calling {source} raised {type(error).__name__}: {error}") from error
    missing = [member for member in _MEMBERS if not _has(task, member)]
    if missing:
        raise WeightspaceError(
            f"{source} is a {type(task).__name__} without {', '.join(missing)}; expected a Task, which has "
            f"{', '.join(_MEMBERS)}."
        )
    return task


def _may_be_task(found: Any) -> bool:
    """Return whether an object is a task, a class of tasks, or a function without arguments, which may return one."""
    if inspect.isfunction(found):
        return all(one.default is not one.empty for one in inspect.signature(found).parameters.values())
    return all(_has(found, member) for member in _MEMBERS)


def _has(task: Any, member: str) -> bool:
    """Return whether a task has a member; properties aren't evaluated, since their errors are another issue."""
    return inspect.getattr_static(task, member, None) is not None or hasattr(task, member)
