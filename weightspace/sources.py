"""Sources of tasks and networks by name, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code

#: Built-in tasks whose data come with a library.
BUNDLED_TASKS = ("digits-mlp", "digits-cnn")
#: Built-in tasks that read a folder of data.
FOLDER_TASKS = ("fashion-mlp", "fashion-cnn", "fashion-clip")
#: All built-in tasks.
TASK_NAMES = (*BUNDLED_TASKS, *FOLDER_TASKS)

#: Libraries that build networks.
LIBRARIES = ("torchvision", "timm", "open_clip", "transformers")


def check_task_name(source: str) -> None:
    """Check that there is a task of a name, or the file of ``file.py:object``.

    Raises:
        WeightspaceError: there is none.
    """
    if is_user_code(source):
        _check_file(source.rpartition(":")[0])
    elif source not in TASK_NAMES:
        raise unknown_task(source)


def unknown_task(source: str) -> WeightspaceError:
    """Return the error for a task that does not exist; a file without its object is told apart."""
    if source.endswith(".py"):
        return WeightspaceError(f"{source} is a file: which task in it? Expected {source}:object.")
    return unknown("task", source, [*TASK_NAMES, "file.py:object"])


def check_network_source(source: str) -> None:
    """Check that there is a library of a name, or the file of ``file.py:callable``.

    Raises:
        WeightspaceError: there is none.
    """
    path, separator, _ = source.partition(".py:")
    if separator:
        _check_file(f"{path}.py")
    elif source.partition(":")[0] not in LIBRARIES or ":" not in source:
        raise unknown("network source", source, [*(f"{library}:NAME" for library in LIBRARIES), "file.py:callable"])


def _check_file(path: str) -> None:
    try:
        there = Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or none at all
        there = False
    if not there:
        raise WeightspaceError(f"There is no file {path[:200]}. Expected the path of a Python file before the colon.")
