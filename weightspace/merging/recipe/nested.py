"""Models that are recipes themselves: the path of a recipe's file, or a recipe in the place of a model.

Each becomes a document of its own, and its name takes its place: from there on, all is as with several documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.errors import WeightspaceError

#: Keys whose values are models.
_MODELS = ("model", "base_model", "path")

#: How the names of recipes' files end.
_SUFFIXES = (".yml", ".yaml")


@dataclass
class Flattened:
    """Documents without recipes inside them.

    Attributes:
        documents: what errors call each, and its content.
        files: recipes' files that were read -> the name of the document that each became.
    """

    documents: list[tuple[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def flattened(contents: Sequence[Any], where: str) -> list[tuple[str, Any]]:
    """Return the documents of a file, and behind them those that their models are.

    Args:
        contents: the documents as YAML has them; empty ones are left out.
        where: what errors call the file.

    Returns:
        What errors call each document, and its content.

    Raises:
        WeightspaceError: a recipe's file cannot be read, has no documents, or is made from itself.
    """
    found = Flattened()
    _add(found, contents, where, ())
    return found.documents


def _add(found: Flattened, contents: Sequence[Any], where: str, open_files: tuple[str, ...]) -> None:
    """Add the documents of a file, and what their models are."""
    filled = [content for content in contents if content is not None] or [None]
    for number, content in enumerate(filled, start=1):
        place = where if len(filled) == 1 else f"{where}, document {number}"
        at = len(found.documents)
        found.documents.append((place, None))
        found.documents[at] = (place, _without_recipes(found, content, place, "", open_files))


def _without_recipes(found: Flattened, value: Any, where: str, path: str, open_files: tuple[str, ...]) -> Any:
    """Return a part of a document, a name in the place of every recipe in it."""
    if isinstance(value, list):
        return [_without_recipes(found, one, where, f"{path}[{i}]", open_files) for i, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    return {key: _resolved(found, key, one, where, _joined(path, key), open_files) for key, one in value.items()}


def _resolved(found: Flattened, key: Any, value: Any, where: str, path: str, open_files: tuple[str, ...]) -> Any:
    """Return the value of a key, the name of its document where it is a recipe."""
    if key in _MODELS and isinstance(value, dict) and "merge_method" in value:
        name = value.get("name") or f"{path} of {where}"
        _add(found, [{**value, "name": name}], f"{where}, {path}", open_files)
        return name
    if key in _MODELS and isinstance(value, str) and value.lower().endswith(_SUFFIXES) and Path(value).is_file():
        return _of_file(found, value, open_files)
    return _without_recipes(found, value, where, path, open_files)


def _of_file(found: Flattened, path: str, open_files: tuple[str, ...]) -> str:
    """Return the name of the document that a recipe's file is."""
    real = os.path.realpath(path)
    if real in open_files:
        raise WeightspaceError(f"{path}: the recipe is made from itself.")
    if real not in found.files:
        found.files[real] = path
        contents = [content for content in read_yaml(Path(path)) if content is not None]
        output = next(_outputs(contents), None)
        if output is None:
            raise WeightspaceError(f"{path} is no recipe: expected a document of keys and values.")
        named = [{**content, "name": path} if content is output else content for content in contents]
        _add(found, named, path, (*open_files, real))
    return found.files[real]


def _outputs(contents: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the document that is a file's output: the one without a name, else the last one."""
    mappings = [content for content in contents if isinstance(content, dict)]
    yield from (content for content in mappings if content.get("name") is None)
    yield from reversed(mappings)


def _joined(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
