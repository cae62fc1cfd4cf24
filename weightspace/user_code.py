"""Objects out of a user's own Python file, named ``file.py:object``: the one place where their code is run.

The file is run anew at each call, with its folder on ``sys.path`` meanwhile, as ``python file.py`` would.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: Name of a module that was made of a user's file -> the file.
_LOADED: dict[str, str] = {}

#: Whether users' files may be run here.
_ALLOWED: ContextVar[bool] = ContextVar("allowed", default=True)


def is_user_code(source: str) -> bool:
    """Return whether ``source`` has the form ``file.py:object``."""
    path, separator, _ = source.rpartition(":")
    return bool(separator) and path.endswith(".py")


@contextmanager
def running_no_code() -> Iterator[None]:
    """Run no user's file in the block: ``load_object`` is an error there."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def may_run_code() -> bool:
    """Return whether users' files may be run here."""
    return _ALLOWED.get()


def load_object(source: str) -> Any:
    """Return the object that a ``file.py:object`` source names.

    Args:
        source: path of a Python file, a colon, the name of something defined in it (``experiment.py:build``);
            dots reach into it (``experiment.py:Tasks.small``).

    Raises:
        WeightspaceError: the source has another form, there is no such file or object, the file fails, or no code may
            run here.
    """
    if not may_run_code():
        raise WeightspaceError(f"{source[:200]} would be run, and no code is run here. Leave out --dry-run.")
    path, _, name = source.rpartition(":")
    if not is_user_code(source) or not name:
        raise WeightspaceError(f"Expected file.py:object, for example experiment.py:build; found {source!r}.")
    value: Any = _run(Path(path))
    for part in name.split("."):
        if not hasattr(value, part):
            raise unknown(f"object in {path}", name, [known for known in dir(value) if known[0] != "_"])
        value = getattr(value, part)
    return value


def read_source(path: Path) -> bytes:
    """Return the content of a Python file, which is not run.

    Raises:
        WeightspaceError: there is no such file, or it cannot be read.
    """
    _check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightspaceError(f"{path} cannot be read: {error.strerror or error}.") from error


def loaded_files() -> dict[str, str]:
    """Return the modules that were made of users' files: name -> file, for ``find_modules`` of another process."""
    return dict(_LOADED)


def find_modules(files: Mapping[str, str]) -> None:
    """Let imports in this process find the modules that another one made of users' files.

    Objects that are defined in them arrive by pickle, which imports a module by its name. The file is run when that
    happens.

    Args:
        files: what ``loaded_files`` returned there.
    """
    new = {name: file for name, file in files.items() if name not in _LOADED}
    _LOADED.update(new)
    sys.path.extend(folder for folder in {str(Path(file).parent): None for file in new.values()})
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)  # pyright: ignore[reportArgumentType]


class _Finder:
    """Finds users' files by the names of their modules."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, _LOADED[name]) if name in _LOADED else None


def _run(path: Path) -> ModuleType:
    """Run a Python file as a module of its own; registered, so that dataclasses and pickle find it."""
    _check_file(path)
    resolved = path.resolve()
    name = f"{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise WeightspaceError(f"{path} cannot be imported. Is it a Python file?")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _LOADED[name] = str(resolved)
    try:
        with _on_search_path(resolved.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name], _LOADED[name]
        raise failure(error, path) from error
    return module


def _check_file(path: Path) -> None:
    """Check that there is a regular file of that name: a pipe would keep who reads it waiting."""
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none at all
        there = False
    if not there:
        raise WeightspaceError(
            f"There is no file {str(path)[:200]}. Expected the path of a Python file before the colon."
        )


def failure(error: BaseException, path: Path) -> WeightspaceError:
    """Return the one line that says where in a user's file something was raised, and what."""
    return WeightspaceError(f"{_place(error, path)}: {type(error).__name__}: {_line(error)}")


@contextmanager
def _on_search_path(folder: Path) -> Iterator[None]:
    """Let imports find the modules of ``folder`` first."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _place(error: BaseException, path: Path) -> str:
    """Return ``file.py:12``: the last line of the user's file that was running."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _line(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return (text.splitlines() or ["no message"])[0]
