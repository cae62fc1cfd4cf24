"""Objects from a user's Python file, given as ``file.py:object``: the only place where user code is run.

The file is rerun on each call, with its folder on ``sys.path`` meanwhile, as in ``python file.py``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: Name of a module made from a user's file -> the file.
_LOADED: dict[str, str] = {}

#: Whether user files may be run.
_ALLOWED: ContextVar[bool] = ContextVar("allowed", default=True)


def is_user_code(source: str) -> bool:
    """Return whether ``source`` has the form ``file.py:object``."""
    path, separator, _ = source.rpartition(":")
    return bool(separator) and path.endswith(".py")


@contextmanager
def running_no_code() -> Iterator[None]:
    """Forbid running user files inside the block: ``load_object`` raises an error."""
    token = _ALLOWED.set(False)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def may_run_code() -> bool:
    """Return whether user files may be run."""
    return _ALLOWED.get()


def load_object(source: str, fits: Callable[[Any], bool] = lambda _: True) -> Any:
    """Return the object named by a ``file.py:object`` source.

    Args:
        source: path of a Python file, a colon, and a name defined in it (``experiment.py:build``); dots access
            attributes (``experiment.py:Tasks.small``).
        fits: whether an object is of the kind that is expected; an error lists only those, if there are any.

    Raises:
        WeightspaceError: the source has another form, the file or object doesn't exist, the file fails, or no code may
            run.
    """
    if not may_run_code():
        raise WeightspaceError(f"{source[:200]} would have to be run, but a dry run runs no code. Leave out --dry-run.")
    path, _, name = source.rpartition(":")
    if not is_user_code(source) or not name:
        raise WeightspaceError(f"Expected file.py:object, for example experiment.py:build; found {source!r}.")
    value: Any = _run(Path(path))
    for part in name.split("."):
        if not hasattr(value, part):
            raise unknown(f"object in {path}", name, _names(value, fits))
        value = getattr(value, part)
    return value


def _names(owner: Any, fits: Callable[[Any], bool]) -> list[str]:
    """Return the names that a file or an object defines itself, of the kind that is expected if it has any."""
    own = {known: getattr(owner, known) for known in dir(owner) if known[0] != "_"}
    if isinstance(owner, ModuleType):
        own = {known: value for known, value in own.items() if not _is_imported(value, owner)}
    return [known for known, value in own.items() if fits(value)] or list(own)


def _is_imported(value: Any, module: ModuleType) -> bool:
    """Return whether an object in a module is another module, or a function or class from one."""
    is_code = isinstance(value, type) or (callable(value) and hasattr(value, "__name__"))
    return isinstance(value, ModuleType) or (is_code and getattr(value, "__module__", None) != module.__name__)


def read_source(path: Path) -> bytes:
    """Return the content of a Python file without running it.

    Raises:
        WeightspaceError: the file doesn't exist or can't be read.
    """
    _check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightspaceError(f"{path} cannot be read: {error.strerror or error}.") from error


def loaded_files() -> dict[str, str]:
    """Return the modules made from user files, name -> file, for ``find_modules`` in another process."""
    return dict(_LOADED)


def find_modules(files: Mapping[str, str]) -> None:
    """Let imports in this process find the modules that another process made from user files.

    Unpickling their objects imports a module by its name, which then runs the file.

    Args:
        files: the result of ``loaded_files`` in the other process.
    """
    new = {name: file for name, file in files.items() if name not in _LOADED}
    _LOADED.update(new)
    sys.path.extend(folder for folder in {str(Path(file).parent): None for file in new.values()})
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)  # pyright: ignore[reportArgumentType]


class _Finder:
    """Finder of user files by the names of their modules."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, _LOADED[name]) if name in _LOADED else None


def _run(path: Path) -> ModuleType:
    """Run a Python file as a separate module, registered so that dataclasses and pickle find it."""
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
    """Check that a regular file of that name exists; reading a pipe would block."""
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none at all
        there = False
    if not there:
        raise WeightspaceError(
            f"There is no file {str(path)[:200]}. Expected the path of a Python file before the colon."
        )


def failure(error: BaseException, path: Path) -> WeightspaceError:
    """Return a one-line error with the place in a user's file and the exception."""
    return WeightspaceError(f"{_place(error, path)}: {type(error).__name__}: {_line(error)}")


@contextmanager
def _on_search_path(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on the module search path."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _place(error: BaseException, path: Path) -> str:
    """Return ``file.py:12``: the last line of the user's file in the traceback."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return (text.splitlines() or ["no message"])[0]
