"""The keys of a recipe that say how its models are read: ``components`` and ``names``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.checkpoints.name_maps.named_maps import read_name_maps, written_maps
from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.document import Document, kind


def components_key(document: Document, top: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the components that are merged: ``components: [unet]``; none stands for all.

    Raises:
        WeightspaceError: the value is not a list of names.
    """
    value = top.get("components")
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise document.error("components", f"must be a list of components such as [unet], found {kind(value)}")
    return tuple(names)


def names_key(document: Document, top: Mapping[str, Any]) -> tuple[str | Mapping[str, Any], ...]:
    """Return the name maps that bring the models to common names: ``names: gate-up``, a file, a map, or a list of them.

    Raises:
        WeightspaceError: a map is unknown or invalid.
    """
    value = top.get("names")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    try:
        return tuple(written_maps(read_name_maps(listed)))
    except WeightspaceError as error:
        raise WeightspaceError(f"{document.where}: names: {error}") from error


def with_written_maps(top: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a recipe's content with the content of name maps in place of their files."""
    value = top.get("names")
    if value is None:
        return top
    return {**top, "names": written_maps(read_name_maps(value if isinstance(value, list) else [value]))}
