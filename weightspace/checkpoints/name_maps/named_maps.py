"""The name maps that a user asks for: built-in ones by name, and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.checkpoints.name_maps.name_map import NameMap, parse_name_map
from weightspace.checkpoints.yaml_file import read_yaml
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: A map by name, its file, or its content; or several, which are applied in order.
Names: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Sequence[str | os.PathLike[str] | Mapping[str, Any]]

#: The folder of the built-in maps, a file each.
_FOLDER = Path(__file__).parent / "maps"

#: Endings of a user's maps.
_ENDINGS = (".yaml", ".yml")


@cache
def built_in() -> Mapping[str, Path]:
    """Return the built-in maps: name -> file."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def read_name_maps(names: Names | None) -> tuple[NameMap, ...]:
    """Return the maps that a user asks for.

    Args:
        names: the name of a built-in map (``gate-up``), the path of a YAML file, or its content; ``gate-up=fused`` also
            says which side all models are brought to. Or a list of these, which are applied in order.

    Raises:
        WeightspaceError: a name is unknown, or a file is missing or not a valid map.
    """
    if names is None:
        return ()
    listed = [names] if isinstance(names, str | os.PathLike | Mapping) else list(names)
    return tuple(_read(one) for one in listed)


def written_maps(maps: Sequence[NameMap]) -> list[str | dict[str, Any]]:
    """Return maps as JSON-serialisable values from which ``read_name_maps`` returns the same."""
    return [
        f"{one.title}{'' if one.to is None else f'={one.sides[one.to]}'}"
        if one.title in built_in()
        else dict(one.content)
        for one in maps
    ]


def _read(name: Any) -> NameMap:
    """Return a map."""
    if isinstance(name, Mapping):
        return _with_variants(parse_name_map(dict(name), "names"))
    if not isinstance(name, str | os.PathLike):
        raise WeightspaceError(f"names must be the name of a map, a YAML file or its content; found {name!r}.")
    text, _, side = os.fspath(name).partition("=")
    if text in built_in():
        path, title = built_in()[text], text
    elif text.lower().endswith(_ENDINGS):
        path, title = Path(text), text
    else:
        raise unknown("name map", text, [*built_in(), "a YAML file"])
    documents = read_yaml(path)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise WeightspaceError(f"{path} must hold one mapping, with sides and rules.")
    return _with_variants(parse_name_map({**documents[0], **({"to": side} if side else {})}, title))


def _with_variants(name_map: NameMap) -> NameMap:
    """Return a map after checking that the maps of its variants exist."""
    for variant in name_map.variants:
        if variant is not None and variant not in built_in():
            raise unknown(f"map of the variants of {name_map.title}:", str(variant), built_in())
    return name_map
