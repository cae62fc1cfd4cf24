"""Nested recipes: models given as a recipe file's path or as an inline recipe.

Each nested recipe becomes a separate document and is replaced by that document's name, so that it is handled like the
documents of a multi-document file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.then import with_steps

#: Keys whose values are models.
_MODELS = ("model", "base_model", "path")

#: Suffixes of recipe files.
_SUFFIXES = (".yml", ".yaml")


@dataclass
class Flattened:
    """Documents without nested recipes.

    Attributes:
        documents: pairs of a document's name in errors and its content.
        files: path of a recipe file that was read -> name of its document.
    """

    documents: list[tuple[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def flattened(contents: Sequence[Any], where: str) -> list[tuple[str, Any]]:
    """Return the documents of a file, followed by their nested recipes.

    Args:
        contents: the parsed documents; empty ones are skipped.
        where: name of the file in errors.

    Returns:
        Pairs of a document's name in errors and its content.

    Raises:
        WeightspaceError: a recipe file cannot be read, has no documents, or uses itself as a model.
    """
    found = Flattened()
    _add(found, contents, where, ())
    return found.documents


def _add(found: Flattened, contents: Sequence[Any], where: str, open_files: tuple[str, ...]) -> None:
    """Add the documents of a file and their nested recipes."""
    filled = [content for content in contents if content is not None] or [None]
    for number, content in enumerate(filled, start=1):
        place = where if len(filled) == 1 else f"{where}, document {number}"
        for part in with_steps(content, place):
            at = len(found.documents)
            found.documents.append((place, None))
            found.documents[at] = (place, _without_recipes(found, part, place, "", open_files))


def _without_recipes(found: Flattened, value: Any, where: str, path: str, open_files: tuple[str, ...]) -> Any:
    """Return a part of a document with every nested recipe replaced by its name."""
    if isinstance(value, list):
        return [_without_recipes(found, one, where, f"{path}[{i}]", open_files) for i, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    return {key: _resolved(found, key, one, where, _joined(path, key), open_files) for key, one in value.items()}


def _resolved(found: Flattened, key: Any, value: Any, where: str, path: str, open_files: tuple[str, ...]) -> Any:
    """Return the value of a key; a nested recipe is replaced by the name of its document."""
    if key in _MODELS and isinstance(value, dict) and "merge_method" in value:
        name = value.get("name") or f"{path} of {where}"
        _add(found, [{**value, "name": name}], f"{where}, {path}", open_files)
        return name
    if key in _MODELS and isinstance(value, str) and value.lower().endswith(_SUFFIXES) and Path(value).is_file():
        return _add_file(found, value, open_files)
    return _without_recipes(found, value, where, path, open_files)


def _add_file(found: Flattened, path: str, open_files: tuple[str, ...]) -> str:
    """Add the documents of a recipe file unless it was read before; return the name of its output."""
    real = os.path.realpath(path)
    if real in open_files:
        raise WeightspaceError(f"{path}: the recipe uses itself as a model.")
    if real not in found.files:
        found.files[real] = path
        contents = [content for content in read_yaml(Path(path)) if content is not None]
        output = next(_outputs(contents), None)
        if output is None:
            raise WeightspaceError(f"{path} is not a recipe: expected a mapping of keys to values.")
        named = [{**content, "name": path} if content is output else content for content in contents]
        _add(found, named, path, (*open_files, real))
    return found.files[real]


def _outputs(contents: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the candidates for a file's output, best first: documents without a name, then the last one."""
    mappings = [content for content in contents if isinstance(content, dict)]
    yield from (content for content in mappings if content.get("name") is None)
    yield from reversed(mappings)


def _joined(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
