"""Writing so that a name on disk always shows a whole checkpoint: the old one or the new one.

New data is written beside its place under a hidden name that ends in ``.tmp``, forced to the disk, then
renamed. On any failure, an interrupt included, the hidden file is removed and the old one is as it was; what a process
that was killed left is removed by the next one that writes there.
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


#: Linux's ``RENAME_EXCHANGE``, and the descriptor that stands for the working directory.
_EXCHANGE, _HERE = 2, -100

#: What systems and file systems say that cannot do it.
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(a: Path, b: Path) -> bool:
    """Give two existing files or folders each other's name; return whether the system can.

    Raises:
        OSError: it can, but the disk refuses.
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


#: Bytes of a name, where the file system does not say how many it takes.
_NAME_MAX = 255

#: Hexadecimal digits that tell the temporary files of one name apart.
_DIGITS = 8

#: Names that are tried before giving up: each fails only where another process takes it away between two calls.
_TRIES = 16


def hidden_beside(target: Path, ending: str) -> Path:
    """Return a hidden name in the folder of ``target``, so that a rename never crosses file systems.

    Args:
        target: whose name it has inside, or the digest of that name where the whole would be too long.
        ending: of the hidden name, after a dot.
    """
    name = f".{target.name}.{ending}"
    if len(os.fsencode(name)) > _longest_name(target.parent):
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}.{ending}"
    return target.with_name(name)


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """Yield a new empty file beside ``target``; at the end it is removed unless it has another name.

    Raises:
        OSError: the disk refuses.
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
    """Yield a new folder beside ``target``; at the end it is removed, with all in it, unless it has another name.

    Raises:
        OSError: the disk refuses.
    """

    def make(path: Path) -> int:
        path.mkdir()
        try:
            return os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows opens no folders, and locks none
            return os.open(os.devnull, os.O_RDONLY)

    sweep(target)
    path, descriptor = _held(target, make)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(target: Path) -> None:
    """Take away what processes that were killed left beside ``target``."""
    before, after = hidden_beside(target, f"{'0' * _DIGITS}.tmp").name.rsplit("0" * _DIGITS, 1)
    with suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            digits = entry.name.removeprefix(before).removesuffix(after)
            if entry.name == f"{before}{digits}{after}" and len(digits) == _DIGITS:
                _remove_unheld(Path(entry.path))


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder as long as it is open.

    Returns:
        True, or False where another process has locked it, or None where there are no locks.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks: the user's care has to do
        return None
    return True


def _held(target: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make something under a new name and lock it; return the name and the descriptor."""
    for _ in range(_TRIES):
        path = hidden_beside(target, f"{secrets.token_hex(_DIGITS // 2)}.tmp")
        descriptor = make(path)
        if try_lock(descriptor) is not False and os.path.lexists(path):
            return path, descriptor
        os.close(descriptor)  # another process swept it between the two calls
    raise FileExistsError(f"{target}: another process takes away what is written beside it")


def _remove_unheld(path: Path) -> None:
    """Remove a temporary file or folder that no process holds."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            mode = os.fstat(descriptor).st_mode
            if (S_ISREG(mode) or S_ISDIR(mode)) and try_lock(descriptor):
                shutil.rmtree(path) if S_ISDIR(mode) else path.unlink()
        finally:
            os.close(descriptor)


def _longest_name(folder: Path) -> int:
    """Return how many bytes a name in a folder may have."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, a folder that is still to be made, an odd file system
        return _NAME_MAX
