"""A recipe's parameters for one tensor: scalars, gradients over the layers, and values chosen by filters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.parse import Recipe

#: Filters that match every name.
_ANY = (None, "*")


def resolve(recipe: Recipe, part: int, name: str, position: float) -> tuple[list[float] | None, dict[str, Any]]:
    """Return weights and parameters for one tensor of the output.

    A source's own parameter beats that of its slice, which beats that of the recipe.

    Args:
        recipe: the recipe.
        part: index of the slice that the tensor belongs to.
        name: the tensor's.
        position: how deep in the slice its layer lies, 0 to 1; 0 outside the layers.

    Returns:
        One weight a source, or None where no source has one; and the values by name, for parameters that may differ by
        model a list of one a source.

    Raises:
        WeightspaceError: sources differ in a parameter that the method has once, or a source alone lacks one.
    """
    piece = recipe.slices[part]
    levels = (piece.parameters, piece.module_parameters, recipe.parameters)
    names = dict.fromkeys(key for level in (*(s.parameters for s in piece.sources), *levels) for key in level)
    own = {parameter.name for parameter in find_method(recipe.method).parameters if parameter.per_model}
    weights: list[float] | None = None
    values: dict[str, Any] = {}
    for key in names:
        found = [_first(key, name, position, (source.parameters, *levels)) for source in piece.sources]
        if key == "weight":
            weights = [1.0 if value is None else value for value in found]
        elif key in own:
            values[key] = found
        elif given := [value for value in found if value is not None]:
            if any(value != given[0] for value in given):
                raise WeightspaceError(
                    f"Method {recipe.method!r} has one {key!r} for all models, but the sources of {name!r} say "
                    f"{', '.join(map(str, found))}. Expected one value."
                )
            values[key] = given[0]
    return weights, values


def unmatched_filters(recipe: Recipe, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the filters that match no tensor, each with the parameter that it belongs to.

    Args:
        recipe: the recipe.
        names: of all float tensors of the output.
    """
    known = list(names)
    return [
        (key, text)
        for key, text in dict.fromkeys(_filters(recipe))
        if text not in _ANY and not any(text in name for name in known)
    ]


def _filters(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield every filter with the parameter that it belongs to."""
    for piece in recipe.slices:
        levels = (piece.parameters, piece.module_parameters, recipe.parameters)
        for level in (*(source.parameters for source in piece.sources), *levels):
            for key, setting in level.items():
                if is_filtered(setting):
                    yield from ((key, choice.get("filter")) for choice in setting)


def is_filtered(setting: Any) -> bool:
    """Return whether a setting is a list of filters with values."""
    return isinstance(setting, list) and any(isinstance(choice, dict) for choice in setting)


def _first(key: str, name: str, position: float, levels: Iterable[Mapping[str, Any]]) -> Any:
    """Return the value of the first level that has one for the tensor; None where none has."""
    for level in levels:
        if key in level:
            value = _value(level[key], name, position)
            if value is not None:
                return value
    return None


def _value(setting: Any, name: str, position: float) -> Any:
    """Return the value of a setting for one tensor, None where its filters match nothing."""
    if is_filtered(setting):
        for choice in setting:
            if choice.get("filter") in _ANY or choice["filter"] in name:
                return _value(choice["value"], name, position)
        return None
    return _interpolated(setting, position) if isinstance(setting, list) else setting


def _interpolated(anchors: list[Any], position: float) -> Any:
    """Return the value at a position of the straight lines through equally spaced anchors; words are not mixed."""
    place = position * (len(anchors) - 1)
    if any(isinstance(anchor, bool | str) for anchor in anchors):
        return anchors[int(place)]
    before = min(int(place), max(0, len(anchors) - 2))
    if place == before or len(anchors) == 1:
        return anchors[before]
    return anchors[before] + (place - before) * (anchors[before + 1] - anchors[before])
