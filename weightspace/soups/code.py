"""What code refers to: the globals and modules that it names, and what stands in the body of a class."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Operations that read a global by its name.
_READING = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS"}

#: Functions that import a module by its name.
_IMPORTERS = {"import_module", "__import__"}

#: Values that may stand in the body of a class.
_VALUES = (
    *(bool, int, float, complex, str, bytes, tuple, frozenset, list, dict, set, range, type(None), Path),
    *(Tensor, np.ndarray, np.generic, torch.dtype, type),
)


def global_names(code: CodeType) -> list[str]:
    """Return the names of the globals that code may read, that of functions inside it too."""
    reading = (instruction for part in _parts(code) for instruction in dis.get_instructions(part))
    return sorted({str(one.argval) for one in reading if one.opname in _READING})


def used_names(code: CodeType) -> set[str]:
    """Return all names that code uses, of globals and of attributes."""
    return {name for part in _parts(code) for name in part.co_names}


def imported_names(code: CodeType) -> list[str]:
    """Return the absolute names of the modules that code may import, and those of packages that they are in."""
    names: set[str] = set()
    for part in _parts(code):
        names |= {str(one.argval) for one in dis.get_instructions(part) if one.opname == "IMPORT_NAME"}
        if _IMPORTERS & set(part.co_names):
            names |= {value for value in part.co_consts if isinstance(value, str) and _is_module_name(value)}
    parts = [name.split(".") for name in names]
    return sorted({".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)})


def parts_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield names and parts of the body of a class: methods, whatever wraps them, and plain values."""
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
    """Yield code, and the code of functions and classes inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
