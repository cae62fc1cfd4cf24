"""Hidden files and folders in which something grows before it gets its name, held by the process that writes them.

Each is locked as long as it is used. One that nobody holds was left by a process that was killed; the next writer of
the same name takes it away.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

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
