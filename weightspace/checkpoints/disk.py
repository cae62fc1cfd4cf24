"""Writing so that a name on disk always shows a whole checkpoint: the old one or the new one.

New data is written beside its place under a hidden name that ends in ``.tmp``, forced to the disk, then
renamed. On any failure, an interrupt included, the hidden file is removed and the old one is as it was; what a process
that was killed left is removed by the next one that writes there.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from weightspace.checkpoints.exchange import exchange
from weightspace.checkpoints.temporary import hidden_beside, temporary_file, temporary_folder
from weightspace.errors import CheckpointError


@contextmanager
def one_line_errors(path: Path, action: str) -> Iterator[None]:
    """Turn an ``OSError`` into a ``CheckpointError`` that says that ``path`` cannot be read (or written)."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be {action}: {reason}.") from error


def check_regular(path: Path) -> None:
    """Check that a file which is there is a regular one: a pipe would keep who reads it waiting.

    Raises:
        CheckpointError: it is something else.
        OSError: the name cannot be looked at.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise CheckpointError(f"{path} is {what}; expected a file.")


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that is forced to the disk when the block ends without an error."""
    with open(path, "x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that takes the place of ``path`` when the block ends without an error.

    Missing parent folders are made. A symbolic link stays, and the file that it points to is replaced.

    Raises:
        CheckpointError: ``path`` is a folder or a device, or the disk refuses (it is full, read-only, …).
    """
    with one_line_errors(path, "written"):
        target = final_target(path)
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise CheckpointError(f"{path} is {kind}; expected a file or a free name to write to.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(target) as temporary:
            with open(temporary, "r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        sync_folder(target.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` when the block ends without an error.

    Nothing of an old folder survives in the new one. Whether the old one may go is for the caller to check
    before. Only where the file system cannot exchange two names can a crash between two renames leave the old folder
    under its hidden name, ending in ``.old``.

    Raises:
        CheckpointError: the disk refuses (it is full, read-only, …).
    """
    with one_line_errors(path, "written"):
        target = final_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as staging:
            yield staging
            sync_folder(staging)
            _swap(staging, target)
        sync_folder(target.parent)


def final_target(path: Path) -> Path:
    """Return where a path leads through links, whether or not there is anything yet.

    Raises:
        OSError: its links lead in a circle.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # realpath gives up on a circle and returns a link
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _swap(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``, or leave ``target`` as it was."""
    if not target.exists():
        os.replace(staging, target)
        return
    if exchange(staging, target):
        return
    old = hidden_beside(target, f"{secrets.token_hex(4)}.old")
    os.replace(target, old)
    try:
        os.replace(staging, target)
    except BaseException:
        if not target.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
