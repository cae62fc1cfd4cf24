"""Source files that a user's module depends on: its own file, and those of all modules that it imports.

Imports are found in the source, including those inside functions, and resolved as Python does; nothing is executed.
Installed packages are foreign: only the module's own file counts, not its imports.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

#: Folders of foreign code: Python's, this library's, and those of installed packages.
_FOREIGN = tuple(
    {
        Path(__file__).parents[1],
        *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)
_INSTALLED = {"site-packages", "dist-packages"}

#: Functions that import a module by name.
_IMPORTERS = ("import_module", "__import__")


def is_foreign(file: Path) -> bool:
    """Return whether a file belongs to Python, to an installed package, or to this library."""
    return not _INSTALLED.isdisjoint(file.parts) or any(file.is_relative_to(folder) for folder in _FOREIGN)


def source_of(module: ModuleType) -> Path | None:
    """Return the file that a module was loaded from, or None if there is none, as in a notebook."""
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_file() else None


def source_digests(module: ModuleType) -> list[str]:
    """Return the digests of a module's file and of all modules that it imports, ordered by name.

    Args:
        module: module; only its own file counts if it is foreign.
    """
    own = source_of(module)
    if own is None:
        return []
    sources: dict[str, Path] = {}
    waiting = [("", own, _package(module))]
    while waiting:
        name, file, package = waiting.pop()
        if name not in sources and not (name and is_foreign(file)):
            sources[name] = file
            waiting.extend(() if is_foreign(file) else _imported(file, package))
    return [digest_of(file) for _, file in sorted(sources.items())]


def import_digests(name: str) -> list[str]:
    """Return the digests for a module by name, loaded or not; an empty list if it is foreign or not found."""
    found = _resolved(name)
    if found is None or is_foreign(found[0]):
        return []
    module = ModuleType(name)
    module.__file__, module.__package__ = str(found[0]), found[1]
    return source_digests(module)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, cached until its size, times or inode change.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    return _digest(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _package(module: ModuleType) -> str:
    return getattr(module, "__package__", None) or ""


def _imported(file: Path, package: str) -> Iterator[tuple[str, Path, str]]:
    """Yield the name, file and package of each module that a source file imports."""
    for name in sorted(_names(file, package)):
        found = _resolved(name, file.parent)
        if found is not None:
            yield name, *found


def _names(file: Path, package: str) -> set[str]:
    """Return the absolute names of modules that a source file may import, and of the packages containing them."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError, ValueError):  # relative import beyond the top-level package
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
                names.update((base, *(f"{base}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _IMPORTERS and isinstance(node.args[0].value, str):
                with suppress(ImportError, ValueError):
                    names.add(importlib.util.resolve_name(node.args[0].value, package or None))
    parts = [name.split(".") for name in names if name]
    return {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}


def _resolved(name: str, beside: Path | None = None) -> tuple[Path, str] | None:
    """Return the file and package of a module, loaded or not; None if it isn't found or has no file."""
    module = sys.modules.get(name)
    if module is not None:
        file = source_of(module)
        return None if file is None else (file, _package(module))
    top, *below = name.split(".")
    holder = source_of(sys.modules[top]) if top in sys.modules else None
    if holder is not None and is_foreign(holder):
        return None
    spec = _top_spec(top, [*([] if beside is None else [str(beside)]), *sys.path])
    file = None if spec is None or not spec.origin else Path(spec.origin)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    is_package = bool(folders)
    for part in below:
        places = [place for folder in folders for place in (folder / part / "__init__.py", folder / f"{part}.py")]
        file = next((place for place in places if place.is_file()), None)
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
        is_package = file is None or file.name == "__init__.py"
    if file is None or not file.is_file():
        return None
    return file.resolve(), name if is_package else name.rpartition(".")[0]


def _top_spec(name: str, folders: list[str]) -> ModuleSpec | None:
    """Find the spec of a top-level module as an import would, including editable installs."""
    spec = PathFinder.find_spec(name, folders)
    for finder in sys.meta_path if spec is None else ():
        with suppress(Exception):  # third-party finder
            spec = spec or finder.find_spec(name, None, None)
    return spec


#: Folders of pseudo-files.
_NO_FILES = tuple(map(Path, ("/proc", "/sys", "/dev")))


#: Placeholder digest of a missing file.
_ABSENT = "absent"


class _Notes:
    """Files read for a task in this process so far, as data is often loaded for the first score and then kept.

    Files that are also written are ignored.
    """

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.listed: set[str] = set()
        self.written: set[str] = set()
        self.loaded: set[str] = set()
        self.before: set[str] | None = None


#: Name of a task -> files read for it.
_NOTES: dict[str, _Notes] = {}
#: Current recorder of opened files, for all threads; none if empty.
_CURRENT: list[_Notes] = []
_HOOKED: list[bool] = []


@contextmanager
def noting_reads(task: str, *, files: bool = True) -> Iterator[None]:
    """Record the files and modules that the block reads.

    Args:
        task: name of the task to record them for.
        files: whether to record opened files; otherwise only modules.
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
    """Return path -> current SHA-256 of the files read for a task in this process."""
    notes = _NOTES.get(task, _Notes())
    modules = (sys.modules.get(name) for name in notes.loaded)
    sources = [source_of(module) for module in modules if isinstance(module, ModuleType)]
    opened = {path for path in notes.opened if notes.written.isdisjoint((path, os.path.realpath(path)))}
    paths = {Path(path) for path in opened} | {source for source in sources if source is not None}
    names = [*map(str, sorted(paths)), *(folder + os.sep for folder in sorted(notes.listed) if os.path.isdir(folder))]
    return {name: _digest_now(name) for name in names if not is_foreign(Path(os.path.realpath(name)))}


def are_unchanged(reads: Mapping[str, str]) -> bool:
    """Return whether files and folders still have the given digests."""
    try:
        return all(_digest_now(path) == digest for path, digest in reads.items())
    except OSError:
        return False


def _digest_now(path: str) -> str:
    """Return the digest of a file, or of the names in a folder, whose path ends with a separator."""
    return _opened_names(path) if path.endswith(os.sep) else _content(Path(path))


def _content(path: Path) -> str:
    """Return the digest of a file, or a placeholder if it is missing (temporary, or yet to be created)."""
    try:
        return digest_of(path) if path.is_file() else _ABSENT
    except OSError:
        return _ABSENT


def _opened_names(folder: str) -> str:
    """Return the digest of the names in a folder."""
    return hashlib.sha256("\0".join(sorted(os.listdir(folder))).encode("utf-8", "surrogateescape")).hexdigest()


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Record a file opened for reading or a folder being listed; as an audit hook, never raise."""
    if event not in ("open", "os.listdir", "os.scandir") or not _CURRENT:
        return
    with suppress(Exception):
        path = arguments[0]
        if isinstance(path, int):  # an already open file descriptor
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
    """Return whether a file is opened for reading, including read-write memory maps of arrays."""
    if isinstance(mode, str):
        return not set("wax") & set(mode)
    return flags & (os.O_WRONLY | os.O_CREAT | os.O_TRUNC) == 0 and not flags & getattr(os, "O_DIRECTORY", 0)
