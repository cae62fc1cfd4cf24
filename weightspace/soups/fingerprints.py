"""Fingerprints: SHA-256 of what a score depends on, alike in every process and on every machine.

Weights by their names, dtypes, shapes and bytes, whatever file they come from. A task by the source of the code that it
is made of and by what it holds; its data by the batches that it gives out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.connectivity.statistics import SEED
from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Split, Task

#: Folders of code that is somebody else's: known by its names.
_FOREIGN = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")})


def fingerprint_of_state(state: StateDict) -> str:
    """Return the digest of a model's tensors; neither their order nor the file format matters."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}\0".encode())
        _add_tensor(digest, state[name])
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
    walk = _Walk(digest, f"a batch of task {task.name!r}")
    for batch in task.batches(cast(Split, split), SEED):
        walk.add(batch)
    return digest.hexdigest()


def fingerprint_of_task(task: Task) -> str:
    """Return the digest of a task: its class and functions by the files that define them, and all that it holds.

    Of a user's file the neighbours that it imports count too; of installed packages the names do. What a task would
    not carry to another process (``__getstate__``) and cached properties are left out.

    Raises:
        WeightspaceError: the task holds something that has no fingerprint.
    """
    digest = hashlib.sha256()
    _Walk(digest, f"task {task.name!r}").add(task)
    return digest.hexdigest()


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    """Add dtype, shape and bytes."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


class _Walk:
    """Adds an object to a digest, and all that hangs on it."""

    def __init__(self, digest: Any, owner: str) -> None:
        self.digest, self.owner = digest, owner
        self.seen: dict[int, tuple[int, Any]] = {}  # with the object, so that its identity is not given away again

    def add(self, value: Any) -> None:
        """Add anything."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path | torch.dtype | range):
            self._note(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            _add_tensor(self.digest, value)
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            self._note("array", str(value.dtype), str(value.shape))
            self.digest.update(np.ascontiguousarray(value).tobytes())
        elif id(value) in self.seen:
            self._note("again", str(self.seen[id(value)][0]))
        else:
            self.seen[id(value)] = len(self.seen), value
            self._add_compound(value)

    def _note(self, *words: str) -> None:
        self.digest.update("\0".join((*words, "\n")).encode())

    def _add_all(self, kind: str, *values: Any) -> None:
        self._note(kind, str(len(values)))
        for value in values:
            self.add(value)

    def _add_compound(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._add_all(type(value).__name__, *(part for item in value.items() for part in item))
        elif isinstance(value, list | tuple):
            self._add_all(type(value).__name__, *value)
        elif isinstance(value, set | frozenset):
            self._add_all(type(value).__name__, *sorted(value, key=repr))
        elif isinstance(value, functools.partial):
            self._add_all("partial", value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            self._add_all("method", value.__func__, value.__self__)
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            self._note("function", value.__qualname__, str(value.__code__.co_firstlineno))
            self._add_source(value)
            self._add_all("with", value.__defaults__, value.__kwdefaults__, cells)
        elif isinstance(value, type):
            self._note("class", value.__qualname__)
            self._add_source(value)
        elif isinstance(value, BuiltinFunctionType | ModuleType):
            self._note("named", getattr(value, "__module__", None) or "", value.__name__)
        elif isinstance(value, CodeType):
            self._add_all("code", value.co_code, value.co_names, value.co_consts)
        elif hasattr(value, "__wrapped__"):  # functools.cache and its like
            self._add_all("wrapped", value.__wrapped__)
        else:
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        """Add an instance of a class: the class, and what it would take along to another process."""
        if isinstance(value, nn.Module):
            self._add_all("module", type(value), repr(value), dict(value.state_dict()))
            return
        state = _carried(value)
        if state is None:
            raise WeightspaceError(
                f"The evaluations of {self.owner} cannot be kept: it holds a {type(value).__name__}, which has no "
                "fingerprint. Say that they need not be kept (cache=False, --no-cache)."
            )
        self._add_all("object", type(value), state)

    def _add_source(self, value: Any) -> None:
        """Add the files that a function or class depends on, or its code where there is no file."""
        module = sys.modules.get(value.__module__)
        file = getattr(module, "__file__", None)
        self._note("of", "" if file else str(value.__module__))
        if file is None:
            codes = [value] if isinstance(value, FunctionType) else list(vars(value).values())
            for code in codes:
                if isinstance(code, FunctionType):
                    self.add(code.__code__)
        elif str(Path(file).resolve()).startswith(_FOREIGN):
            self._note("foreign", str(value.__module__))
        else:
            self._note("source", *_digests(Path(file).resolve()))
        if isinstance(value, type):
            self._add_all("bases", *(base for base in value.__bases__ if base is not object))


def _carried(value: Any) -> Any:
    """Return what an object consists of, None if that cannot be told."""
    if "__getstate__" in {name for base in type(value).__mro__[:-1] for name in vars(base)}:
        return value.__getstate__()
    if hasattr(value, "__dict__"):
        cached = {
            name
            for base in type(value).__mro__
            for name, part in vars(base).items()
            if isinstance(part, functools.cached_property)
        }
        if type(value).__module__ != "builtins":
            return {name: part for name, part in vars(value).items() if name not in cached}
    try:
        reduced = value.__reduce_ex__(4)
    except TypeError:
        return None
    return reduced if isinstance(reduced, str) else list(reduced[1:3])


@functools.lru_cache(maxsize=256)
def _digests(file: Path) -> tuple[str, ...]:
    """Return the digests of a source file and of the neighbours that it imports, in the order of their paths."""
    found: dict[Path, str] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        content = path.read_bytes()
        found[path] = hashlib.sha256(content).hexdigest()
        waiting.extend(_neighbours(path, content))
    return tuple(found[path] for path in sorted(found))


def _neighbours(path: Path, content: bytes) -> Iterator[Path]:
    """Yield the files beside a source file that it imports by their names."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module or ''}.{alias.name}" for alias in node.names)]
        for name in names:
            place = path.parent.joinpath(*name.strip(".").split("."))
            for candidate in (place.with_suffix(".py"), place / "__init__.py"):
                if candidate.is_file():
                    yield candidate.resolve()
