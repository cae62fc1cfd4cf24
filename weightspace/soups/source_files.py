"""The source files that a user's module depends on: its own, and those of all modules that it imports anywhere in it.

Imports are found in the source, those inside functions too, and are resolved as Python resolves them; nothing is run.
Packages that were installed are somebody else's: of those only the file itself counts.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

#: Folders of code that is somebody else's: Python's own and ours, and whatever is installed, on other paths too.
_FOREIGN = tuple(
    {
        Path(__file__).parents[1],
        *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)
_INSTALLED = {"site-packages", "dist-packages"}

#: Functions that import a module by its name.
_IMPORTERS = ("import_module", "__import__")


def is_foreign(file: Path) -> bool:
    """Return whether a file is of Python, of an installed package, or ours."""
    return not _INSTALLED.isdisjoint(file.parts) or any(file.is_relative_to(folder) for folder in _FOREIGN)


def source_of(module: ModuleType) -> Path | None:
    """Return the file that a module was loaded from; None where it has none, as in a notebook."""
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_file() else None


def source_digests(module: ModuleType) -> list[str]:
    """Return the digest of a module's file, and those of all that it imports, in the order of their names.

    Args:
        module: with a file. Of a foreign one only that counts.
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
    """Return the same for a module by its name, loaded or not; nothing where it is foreign or there is none."""
    found = _resolved(name)
    if found is None or is_foreign(found[0]):
        return []
    module = ModuleType(name)
    module.__file__, module.__package__ = str(found[0]), found[1]
    return source_digests(module)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, read again whenever anything about it changes.

    Raises:
        OSError: it cannot be read.
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
    """Yield name, file and package of the modules that a source file imports."""
    for name in sorted(_names(file, package)):
        found = _resolved(name, file.parent)
        if found is not None:
            yield name, *found


def _names(file: Path, package: str) -> set[str]:
    """Return the absolute names that a source file may import, and those of the packages that they are in."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError, ValueError):  # beyond the top of the package
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
    """Return file and package of a module, loaded or not; None where there is none of that name, or no file."""
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
    """Find a module outside packages as an import would, editable installs included."""
    spec = PathFinder.find_spec(name, folders)
    for finder in sys.meta_path if spec is None else ():
        with suppress(Exception):  # somebody else's finder
            spec = spec or finder.find_spec(name, None, None)
    return spec
