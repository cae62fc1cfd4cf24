"""What scoring reads beside the batches: files that are opened meanwhile, and modules of the user's that are loaded.

Neither can be known before. They are noted down with the scores, which count only as long as they are the same. What
libraries open without Python (HDF5, SQLite) is not seen: a task declares it (``files``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from weightspace.soups.source_files import digest_of, is_foreign, source_of

#: Where the system keeps what is no file.
_NO_FILES = tuple(map(Path, ("/proc", "/sys", "/dev")))


class _Notes:
    """What was read for a task in this process, so far: data are often loaded for the first score, and kept.

    A file that is written as well is the task's own affair.
    """

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.written: set[str] = set()
        self.loaded: set[str] = set()
        self.before: set[str] | None = None


#: Name of a task -> what was read for it.
_NOTES: dict[str, _Notes] = {}
#: Where files that are opened now are noted down, by whatever thread; nowhere if it is empty.
_CURRENT: list[_Notes] = []
_HOOKED: list[bool] = []


@contextmanager
def noting_reads(task: str, *, files: bool = True) -> Iterator[None]:
    """Note down what the block reads.

    Args:
        task: the name under which it is noted.
        files: files that are opened count, too; else only modules.
    """
    if not _HOOKED:
        _HOOKED.append(True)
        sys.addaudithook(_hear)
    notes = _NOTES.setdefault(task, _Notes())
    if notes.before is None:
        notes.before = set(sys.modules)
    outer = list(_CURRENT)
    _CURRENT[:] = [notes] if files else outer
    try:
        yield
    finally:
        _CURRENT[:] = outer
        notes.loaded |= sys.modules.keys() - notes.before


def reads_of(task: str) -> dict[str, str]:
    """Return path -> SHA-256 of what was read for a task in this process, as it is now."""
    notes = _NOTES.get(task, _Notes())
    modules = (sys.modules.get(name) for name in notes.loaded)
    sources = [source_of(module) for module in modules if isinstance(module, ModuleType)]
    paths = {Path(path) for path in notes.opened - notes.written} | {source for source in sources if source is not None}
    digests: dict[str, str] = {}
    for path in sorted(paths):
        with suppress(OSError):  # gone meanwhile: a temporary file
            if not is_foreign(path) and path.is_file():
                digests[str(path)] = digest_of(path)
    return digests


def are_unchanged(reads: Mapping[str, str]) -> bool:
    """Return whether files are still what they were."""
    try:
        return all(digest_of(Path(path)) == digest for path, digest in reads.items())
    except OSError:
        return False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Note the name of a file that is opened for reading; as an audit hook it never raises."""
    if event != "open" or not _CURRENT:
        return
    with suppress(Exception):
        path, mode, flags = arguments
        if isinstance(path, int):  # a descriptor that is open already
            return
        name = os.path.realpath(os.fsdecode(path))
        if "__pycache__" not in name and not any(Path(name).is_relative_to(folder) for folder in _NO_FILES):
            notes = _CURRENT[0]
            (notes.opened if _is_read(mode, flags) else notes.written).add(name)


def _is_read(mode: str | None, flags: int) -> bool:
    """Return whether a file is opened to be read, and not to be written."""
    if isinstance(mode, str):
        return not set("wax+") & set(mode)
    return flags & (os.O_WRONLY | os.O_RDWR) == 0 and not flags & getattr(os, "O_DIRECTORY", 0)
