"""Sources of tasks and networks by name, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code

#: Built-in tasks whose data comes with a library.
BUNDLED_TASKS = ("digits-mlp", "digits-cnn")
#: Built-in tasks that read a folder of data.
FOLDER_TASKS = ("fashion-mlp", "fashion-cnn", "fashion-clip", "vit-fashion", "llama-glosses")
#: All built-in tasks.
TASK_NAMES = (*BUNDLED_TASKS, *FOLDER_TASKS)

#: Libraries that build networks.
LIBRARIES = ("torchvision", "timm", "open_clip", "transformers")


def check_task_name(source: str) -> None:
    """Check that a task of this name, or the file of ``file.py:object``, exists.

    Raises:
        WeightspaceError: it doesn't exist.
    """
    if is_user_code(source):
        _check_file(source.rpartition(":")[0])
    elif source not in TASK_NAMES:
        raise unknown_task(source)


def unknown_task(source: str) -> WeightspaceError:
    """Return the error for an unknown task; a file without an object gets its own message."""
    if source.endswith(".py"):
        return WeightspaceError(f"{source} is a file, but doesn't name a task in it. Expected {source}:object.")
    return unknown("task", source, [*TASK_NAMES, "file.py:object"])


def check_network_source(source: str) -> None:
    """Check that a library of this name, or the file of ``file.py:callable``, exists.

    Raises:
        WeightspaceError: it doesn't exist.
    """
    path, separator, _ = source.partition(".py:")
    if separator:
        _check_file(f"{path}.py")
    elif source.partition(":")[0] not in LIBRARIES or ":" not in source:
        raise unknown("network source", source, [*(f"{library}:NAME" for library in LIBRARIES), "file.py:callable"])


def _check_file(path: str) -> None:
    try:
        there = Path(path).is_file()
    except (OSError, ValueError):  # the name is too long or invalid
        there = False
    if not there:
        raise WeightspaceError(f"There is no file {path[:200]}. Expected the path of a Python file before the colon.")
