"""What scoring reads beside the batches: files that are opened meanwhile, and modules of the user's that are loaded.

Neither can be known before. They are noted down with the scores, which count only as long as they are the same: files
by their content under the name that the task uses, which may be a link to other files later; folders that are listed by
the names in them; files that were asked for in vain by their absence. What libraries open without Python (HDF5, SQLite,
safetensors) is not seen: a task declares it (``files``).
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from weightspace.soups.source_files import digest_of, is_foreign, source_of

#: Where the system keeps what is no file.
_NO_FILES = tuple(map(Path, ("/proc", "/sys", "/dev")))


#: Stands for the digest of a file that is not there.
_ABSENT = "absent"


class _Notes:
    """What was read for a task in this process, so far: data are often loaded for the first score, and kept.

    A file that is written as well is the task's own affair.
    """

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.listed: set[str] = set()
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
    opened = {path for path in notes.opened if notes.written.isdisjoint((path, os.path.realpath(path)))}
    paths = {Path(path) for path in opened} | {source for source in sources if source is not None}
    names = [*map(str, sorted(paths)), *(folder + os.sep for folder in sorted(notes.listed) if os.path.isdir(folder))]
    return {name: _digest_now(name) for name in names if not is_foreign(Path(os.path.realpath(name)))}


def are_unchanged(reads: Mapping[str, str]) -> bool:
    """Return whether files and folders are still what they were."""
    try:
        return all(
            (_names(path) if path.endswith(os.sep) else _content(Path(path))) == digest
            for path, digest in reads.items()
        )
    except OSError:
        return False


def _digest_now(path: str) -> str:
    return _names(path) if path.endswith(os.sep) else _content(Path(path))


def _content(path: Path) -> str:
    """Return the digest of a file, or that there is none: a temporary file, or one that may come later."""
    try:
        return digest_of(path) if path.is_file() else _ABSENT
    except OSError:
        return _ABSENT


def _names(folder: str) -> str:
    """Return the digest of the names in a folder."""
    return hashlib.sha256("\0".join(sorted(os.listdir(folder))).encode("utf-8", "surrogateescape")).hexdigest()


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Note the name of a file that is opened for reading, or of a folder that is listed; an audit hook never raises."""
    if event not in ("open", "os.listdir", "os.scandir") or not _CURRENT:
        return
    with suppress(Exception):
        path = arguments[0]
        if isinstance(path, int):  # a descriptor that is open already
            return
        name = os.path.abspath(os.fsdecode("." if path is None else path))
        if "__pycache__" in name or any(Path(name).is_relative_to(folder) for folder in _NO_FILES):
            return
        notes = _CURRENT[0]
        if event != "open":
            by_import = sys._getframe(1).f_code.co_filename.startswith("<frozen importlib")
            if not by_import and name != tempfile.gettempdir():
                notes.listed.add(name)
        elif _is_read(*arguments[1:]):
            notes.opened.add(name)
        else:
            notes.written.update((name, os.path.realpath(name)))


def _is_read(mode: str | None, flags: int) -> bool:
    """Return whether a file is opened to be read, as arrays in memory maps are where they could be written too."""
    if isinstance(mode, str):
        return not set("wax") & set(mode)
    return flags & (os.O_WRONLY | os.O_CREAT | os.O_TRUNC) == 0 and not flags & getattr(os, "O_DIRECTORY", 0)
