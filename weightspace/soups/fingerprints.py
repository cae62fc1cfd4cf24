"""Fingerprints: SHA-256 of what a score depends on, alike in every process and on every machine.

Weights by their names, dtypes, shapes and bytes, whatever file they come from. A task by the code that it is made of,
by what it holds and by the files that it declares; its data by the batches that it gives out.
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
    """Return the digest of a model's tensors; neither their order nor the file format matters."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}\0".encode())
        add_tensor(digest, state[name])
    return digest.hexdigest()


def fingerprint_of_data(task: Task, split: str) -> str:
    """Return the digest of a split: of its batches in order (in training: of the fixed order that statistics see).

    A task with a method ``fingerprint(split) -> str`` is asked instead, where reading all data takes long.

    Raises:
        WeightspaceError: there is something in a batch that has no fingerprint.
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
    """Return the digest of a task: of its code, of all that it holds, and of the files that it declares.

    Of a user's code count the source files that it imports, in packages, lazily or from editable installs too, the code
    that was really loaded, a notebook's as well, and the globals that it refers to. Of installed packages the names and
    the files of what is used count. What a task would not carry to another process (``__getstate__``) and cached
    properties are left out. ``task.files``, paths or a function that returns them, are files and folders that scores
    depend on: their contents count.

    Raises:
        WeightspaceError: the task holds something that has no fingerprint, or declares a file that is not there.
    """
    digest = hashlib.sha256()
    Walk(digest, f"task {task.name!r}").add(task)
    for name, content in _declared(task):
        digest.update(f"{name} {content}\0".encode())
    return digest.hexdigest()


def _declared(task: Task) -> Iterator[tuple[str, str]]:
    """Yield names and digests of the files that a task declares, of those in a folder too."""
    declared: Any = getattr(task, "files", ())
    declared = declared() if callable(declared) else declared
    listed = [declared] if isinstance(declared, str | os.PathLike) else declared
    if not isinstance(listed, Iterable) or not all(isinstance(path, str | os.PathLike) for path in listed):
        raise WeightspaceError(
            f"Task {task.name!r} declares files that are no paths; expected `files` to be paths, or to return them."
        )
    for path in map(Path, listed):
        try:
            inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            for file in inside:
                if not file.is_file():
                    raise WeightspaceError(f"Task {task.name!r} declares {file}, which is no file. Is the path right?")
                yield str(file.relative_to(path)), digest_of(file)
        except OSError as error:
            raise WeightspaceError(
                f"Task {task.name!r} declares {path}, which cannot be read: {error.strerror or error}."
            ) from error
