"""Traversal of an object that adds its contents to a digest in a deterministic order.

For user-defined functions and classes, this covers the source files, the code actually loaded (a file may have been
edited since), and the values of the globals that the code refers to; for foreign ones, only their names and files.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.soups.file_dependencies import digest_of, import_digests, is_foreign, source_digests, source_of

#: Names of the module of a program or notebook.
_MAIN = ("__main__", "__mp_main__")

_PLAIN = (bool, int, float, complex, str, bytes, Path, torch.dtype, range)


class Walk:
    """Traversal that adds objects and everything they depend on to a digest.

    Args:
        digest: ``hashlib`` digest.
        owner: name of the object in errors.
    """

    def __init__(self, digest: Any, owner: str) -> None:
        self.digest, self.owner = digest, owner
        self.seen: dict[int, tuple[int, Any]] = {}  # keeps the object, so that its id isn't reused

    def add(self, value: Any) -> None:
        """Add any object.

        Raises:
            WeightspaceError: it contains an object without a fingerprint.
        """
        if value is None or isinstance(value, _PLAIN):
            self._note(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            add_tensor(self.digest, value)
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            self._note("array", str(value.dtype), str(value.shape))
            self.digest.update(np.ascontiguousarray(value).tobytes())
        elif id(value) in self.seen:
            self._note("again", str(self.seen[id(value)][0]))
        else:
            self.seen[id(value)] = len(self.seen), value
            self._add_compound(value)

    def _note(self, *words: str) -> None:
        self.digest.update("\0".join((*words, "\n")).encode(errors="surrogatepass"))

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
            self._add_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, BuiltinFunctionType | ModuleType):
            self._note("named", getattr(value, "__module__", None) or "", value.__name__)
        elif isinstance(value, CodeType):
            self._add_code(value)
        elif hasattr(value, "__wrapped__"):  # functools.cache and the like
            self._add_all("wrapped", value.__wrapped__)
        else:
            self._add_object(value)

    def _add_function(self, function: FunctionType) -> None:
        """Add a function: its source, code, defaults, closure, and the globals that it refers to."""
        self._note("function", function.__qualname__)
        if self._add_origin(function, function.__code__):
            self._add_code(function.__code__)
            self._add_globals(function)
        cells = [getattr(cell, "cell_contents", None) for cell in function.__closure__ or ()]
        wrapped = getattr(function, "__wrapped__", None)
        self._add_all("with", function.__defaults__, function.__kwdefaults__, cells, wrapped)

    def _add_code(self, code: CodeType) -> None:
        """Add the behaviour of a code object, regardless of its location and of local variable names."""
        table = getattr(code, "co_exceptiontable", b"")
        self._add_all("code", code.co_code, table, code.co_names, code.co_consts, code.co_argcount, code.co_flags)

    def _add_globals(self, function: FunctionType) -> None:
        """Add the globals that a function refers to, and the modules that it imports."""
        names = used_names(function.__code__)
        for name in global_names(function.__code__):
            self._note("global", name)
            if name in function.__globals__:
                self._add_global(function.__globals__[name], names)
            elif not hasattr(builtins, name):
                self._note("missing")
        for name in imported_names(function.__code__):
            self._note("import", name, *import_digests(name))

    def _add_global(self, value: Any, names: Iterable[str]) -> None:
        """Add the value of a global, or its type if it has no fingerprint; of a module, the attributes in use.

        Args:
            value: value of the global.
            names: names that the code uses, including attributes.
        """
        if isinstance(value, ModuleType):
            self._add_module(value, set(names))
            return
        if isinstance(value, Counter | deque):  # running counts or queues that change while the code runs
            self._note("value of", type(value).__qualname__)
            return
        own = Walk(hashlib.sha256(), self.owner)
        own.seen = self.seen
        try:
            own.add(value)
            self._note("value", own.digest.hexdigest())
        except (WeightspaceError, RecursionError, TypeError, ValueError, RuntimeError, AttributeError):
            self._note("value of", type(value).__qualname__)

    def _add_module(self, module: ModuleType, names: set[str]) -> None:
        """Add a module that code refers to; a user's own by its source and the attributes in use."""
        self._note("module", module.__name__)
        file = source_of(module)
        if id(module) in self.seen or module.__name__ in sys.builtin_module_names or (file and is_foreign(file)):
            return
        if file is None and getattr(module, "__spec__", None) is not None:  # an extension or namespace package
            return
        self.seen[id(module)] = len(self.seen), module
        self._note("source", *source_digests(module))
        for name in sorted(names & vars(module).keys()):
            self._note("attribute", name)
            self._add_global(vars(module)[name], names)

    def _add_class(self, cls: type) -> None:
        """Add a class: its source, its body, and its bases."""
        self._note("class", cls.__qualname__)
        if self._add_origin(cls):
            for name, part in parts_of_class(cls):
                self._note("part", name)
                self._add_global(part, ())
        self._add_all("bases", *(base for base in cls.__bases__ if base is not object))

    def _add_origin(self, value: Any, code: CodeType | None = None) -> bool:
        """Add the files that define a function or class; return whether it is the user's own.

        Notebook code has no file, and a wrapped function may be defined elsewhere than it claims; its code tells.
        """
        module = sys.modules.get(value.__module__ or "")
        file = None if module is None else source_of(module)
        written = None if code is None or not Path(code.co_filename).is_file() else Path(code.co_filename).resolve()
        if written is not None:
            own = not is_foreign(written)
        elif module is None or module.__name__ in _MAIN:
            own = True
        else:
            own = getattr(module, "__spec__", None) is None if file is None else not is_foreign(file)
        if not own:
            place = written or file
            self._note("foreign", "" if module is None else module.__name__, "" if place is None else digest_of(place))
        elif module is not None and file is not None and not is_foreign(file):
            self._note("source", *source_digests(module))
        return own

    def _add_object(self, value: Any) -> None:
        """Add an instance: its class, and the state that would be pickled."""
        if isinstance(value, nn.Module):
            self._add_all("module", type(value), repr(value), dict(value.state_dict()))
            for name, part in value.named_modules():
                own = {key: held for key, held in vars(part).items() if key[0] != "_" and key != "training"}
                self._note("part", name)
                self._add_global((type(part), own), ())
            return
        state = carried(value)
        if state is None:
            raise WeightspaceError(
                f"The evaluations of {self.owner} cannot be cached: it holds a {type(value).__name__}, which has no "
                "fingerprint. Disable the cache (cache=False, --no-cache)."
            )
        self._add_all("object", type(value), state)


def add_tensor(digest: Any, tensor: Tensor) -> None:
    """Add dtype, shape and bytes to a digest."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\0".encode())
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def carried(value: Any) -> Any:
    """Return the state of an object, or None if it cannot be determined."""
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


#: Bytecode operations that read a global by name.
_READING = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS"}

#: Functions that import a module by name.
_IMPORTERS = {"import_module", "__import__"}

#: Types of values in class bodies that are included.
_VALUES = (
    *(bool, int, float, complex, str, bytes, tuple, frozenset, list, dict, set, range, type(None), Path),
    *(Tensor, np.ndarray, np.generic, torch.dtype, type),
)


def global_names(code: CodeType) -> list[str]:
    """Return the names of the globals that code, including nested functions, may read."""
    reading = (instruction for part in _parts(code) for instruction in dis.get_instructions(part))
    return sorted({str(one.argval) for one in reading if one.opname in _READING})


def used_names(code: CodeType) -> set[str]:
    """Return all names that code uses, of globals and attributes."""
    return {name for part in _parts(code) for name in part.co_names}


def imported_names(code: CodeType) -> list[str]:
    """Return the absolute names of modules that code may import, and of the packages containing them."""
    names: set[str] = set()
    for part in _parts(code):
        names |= {str(one.argval) for one in dis.get_instructions(part) if one.opname == "IMPORT_NAME"}
        if _IMPORTERS & set(part.co_names):
            names |= {value for value in part.co_consts if isinstance(value, str) and _is_module_name(value)}
    parts = [name.split(".") for name in names]
    return sorted({".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)})


def parts_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield names and members of a class body: methods, wrapped or not, and plain values."""
    for name, part in sorted(vars(cls).items()):
        if isinstance(part, staticmethod | classmethod):
            yield name, part.__func__
        elif isinstance(part, property):
            yield name, (part.fget, part.fset, part.fdel)
        elif isinstance(part, functools.cached_property):
            yield name, part.func
        elif isinstance(part, functools.partialmethod):
            yield name, (part.func, part.args, part.keywords)
        elif _is_code(part) or (isinstance(part, _VALUES) and not (name.startswith("__") and name.endswith("__"))):
            yield name, part


def _is_code(part: Any) -> bool:
    return isinstance(part, FunctionType) or hasattr(part, "__wrapped__")


def _is_module_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _parts(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of nested functions and classes."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
