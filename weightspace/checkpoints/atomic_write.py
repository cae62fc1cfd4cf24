"""Atomic writes: a path always shows a complete checkpoint, either the old or the new one.

New data is written to a hidden sibling that ends in ``.tmp``, flushed to disk, then renamed. On any failure, including
an interrupt, the hidden file is removed and the old one is untouched; leftovers of a killed process are removed by the
next one that writes there.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from weightspace.errors import CheckpointError


@contextmanager
def one_line_errors(path: Path, action: str) -> Iterator[None]:
    """Turn an ``OSError`` into a ``CheckpointError`` saying that ``path`` cannot be read (or written)."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path} cannot be {action}: {reason}.") from error


def check_regular(path: Path) -> None:
    """Check that an existing file is a regular one; reading a pipe would block.

    Raises:
        CheckpointError: it isn't a regular file.
        OSError: the path cannot be accessed.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise CheckpointError(f"{path} is {what}; expected a file.")


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that is flushed to disk when the block ends without an error."""
    with open(path, "x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that replaces ``path`` when the block ends without an error.

    Missing parent folders are created. A symbolic link is kept, and the file that it points to is replaced.

    Raises:
        CheckpointError: ``path`` is a folder or a device, or writing fails (the disk is full, read-only, …).
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
    """Yield an empty folder that replaces ``path`` when the block ends without an error.

    Nothing of the old folder is kept; callers must check beforehand that it may be replaced. If the file system cannot
    exchange two names, a crash between two renames can leave the old folder under its hidden name, ending in ``.old``.

    Raises:
        CheckpointError: writing fails (the disk is full, read-only, …).
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
    """Resolve the links of a path, whether or not the target exists.

    Raises:
        OSError: the links form a cycle.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # realpath gives up on a cycle and returns a link
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _swap(staging: Path, target: Path) -> None:
    """Replace ``target`` by ``staging``, or leave ``target`` unchanged."""
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
    """Flush the names in a folder to disk, if the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


#: Linux's ``RENAME_EXCHANGE``, and the file descriptor for the working directory.
_EXCHANGE, _HERE = 2, -100

#: Error codes of systems and file systems without support for it.
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two existing files or folders; return False if the system doesn't support it.

    Raises:
        OSError: the exchange fails for another reason.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # an old libc, or another system
        return False
    if rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(a))


#: Longest file name in bytes, if the file system doesn't report its limit.
_NAME_MAX = 255

#: Number of random hexadecimal digits in temporary names.
_DIGITS = 8

#: Number of temporary names to try; each fails only if another process removes the file between two calls.
_TRIES = 16


def hidden_beside(target: Path, ending: str) -> Path:
    """Return a hidden name in the folder of ``target``, so that a rename never crosses file systems.

    Args:
        target: path whose name, or its digest if that would be too long, is part of the hidden name.
        ending: ending of the hidden name, after a dot.
    """
    name = f".{target.name}.{ending}"
    if len(os.fsencode(name)) > _longest_name(target.parent):
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}.{ending}"
    return target.with_name(name)


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """Yield a new empty file beside ``target``, which is removed at the end unless it has been renamed.

    Raises:
        OSError: the file cannot be created.
    """
    sweep(target)
    path, descriptor = _held(target, lambda path: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target``, which is removed with its contents at the end unless it has been renamed.

    Raises:
        OSError: the folder cannot be created.
    """

    def make(path: Path) -> int:
        path.mkdir()
        try:
            return os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows cannot open or lock folders
            return os.open(os.devnull, os.O_RDONLY)

    sweep(target)
    path, descriptor = _held(target, make)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(target: Path) -> None:
    """Remove leftovers of killed processes beside ``target``."""
    before, after = hidden_beside(target, f"{'0' * _DIGITS}.tmp").name.rsplit("0" * _DIGITS, 1)
    with suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            digits = entry.name.removeprefix(before).removesuffix(after)
            if entry.name == f"{before}{digits}{after}" and len(digits) == _DIGITS:
                _remove_unheld(Path(entry.path))


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed.

    Returns:
        True if locked, False if another process holds the lock, None if locks aren't supported.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks: users must take care
        return None
    return True


def _held(target: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Create a file or folder under a new name and lock it; return the name and the descriptor."""
    for _ in range(_TRIES):
        path = hidden_beside(target, f"{secrets.token_hex(_DIGITS // 2)}.tmp")
        descriptor = make(path)
        if try_lock(descriptor) is not False and os.path.lexists(path):
            return path, descriptor
        os.close(descriptor)  # another process swept it between the two calls
    raise FileExistsError(f"{target}: another process keeps removing its temporary files")


def _remove_unheld(path: Path) -> None:
    """Remove a temporary file or folder unless a process has locked it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            mode = os.fstat(descriptor).st_mode
            if (S_ISREG(mode) or S_ISDIR(mode)) and try_lock(descriptor):
                shutil.rmtree(path) if S_ISDIR(mode) else path.unlink()
        finally:
            os.close(descriptor)


def _longest_name(folder: Path) -> int:
    """Return the longest file name in a folder, in bytes."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, a folder not yet created, or an unusual file system
        return _NAME_MAX
