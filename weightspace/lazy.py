"""Packages whose names are imported on first use (PEP 562), so that reading a header doesn't import torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def resolver(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    A public function may have the name of the file that defines it: the package's attribute is the function, even after
    the file has been imported.

    Subpackages are imported on first use, too.

    Args:
        package: its ``__name__``.
        homes: public name -> the module in the package that defines it.
    """

    class Package(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            if name not in homes or not isinstance(value, ModuleType):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*homes, *(name for name in self.__dict__ if name.startswith("__"))})

    sys.modules[package].__class__ = Package

    def find(name: str) -> Any:
        if name not in homes:
            if name.isidentifier() and not name.startswith("_") and _is_package(f"{package}.{name}"):
                return importlib.import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None
