"""Fingerprints: SHA-256 digests of everything that a score depends on, equal in all processes and on all machines.

Weights are identified by names, dtypes, shapes and bytes, independent of the file format; a task by its code, its state
and the files that it declares; its data by its batches.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from weightspace.checkpoints import StateDict
from weightspace.connectivity.batchnorm import SEED
from weightspace.errors import WeightspaceError
from weightspace.soups.file_dependencies import digest_of
from weightspace.soups.object_digest import Walk, add_tensor
from weightspace.tasks.protocol import Split, Task


def fingerprint_of_state(state: StateDict) -> str:
    """Return the digest of a model's tensors, independent of their order and of the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}\0".encode())
        add_tensor(digest, state[name])
    return digest.hexdigest()


def fingerprint_of_data(task: Task, split: str) -> str:
    """Return the digest of a split's batches in order (of ``train``, in the fixed order used for BatchNorm statistics).

    If the task has a method ``fingerprint(split) -> str``, its result is used instead, to avoid reading all data.

    Raises:
        WeightspaceError: a batch contains an object without a fingerprint.
    """
    digest = hashlib.sha256()
    own = getattr(task, "fingerprint", None)
    if callable(own):
        digest.update(str(own(split)).encode())
        return digest.hexdigest()
    walk = Walk(digest, f"a batch of task {task.name!r}")
    for batch in task.batches(cast(Split, split), SEED):
        walk.add(batch)
    return digest.hexdigest()


def fingerprint_of_task(task: Task) -> str:
    """Return the digest of a task: its code, its state, and the files that it declares.

    User code includes all imported source files (from packages, lazily, or from editable installs), the code actually
    loaded, including a notebook's, and the globals it refers to. For installed packages, only the names and files of
    what is used count. Cached properties and state that isn't pickled (``__getstate__``) are excluded. ``task.files``,
    paths or a function that returns them, lists files and folders whose contents are included.

    Raises:
        WeightspaceError: the task holds an object without a fingerprint, or declares a missing file.
    """
    digest = hashlib.sha256()
    Walk(digest, f"task {task.name!r}").add(task)
    for name, content in _declared(task):
        digest.update(f"{name} {content}\0".encode())
    return digest.hexdigest()


def _declared(task: Task) -> Iterator[tuple[str, str]]:
    """Yield names and digests of the files that a task declares, including those in declared folders."""
    declared: Any = getattr(task, "files", ())
    declared = declared() if callable(declared) else declared
    listed = [declared] if isinstance(declared, str | os.PathLike) else declared
    if not isinstance(listed, Iterable) or not all(isinstance(path, str | os.PathLike) for path in listed):
        raise WeightspaceError(
            f"Task {task.name!r} declares files that aren't paths; expected `files` to be paths or to return them."
        )
    for path in map(Path, listed):
        try:
            inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            for file in inside:
                if not file.is_file():
                    raise WeightspaceError(
                        f"Task {task.name!r} declares {file}, which isn't a file. Is the path right?"
                    )
                yield str(file.relative_to(path)), digest_of(file)
        except OSError as error:
            raise WeightspaceError(
                f"Task {task.name!r} declares {path}, which cannot be read: {error.strerror or error}."
            ) from error
