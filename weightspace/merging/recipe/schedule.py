"""Resolve a recipe's parameters for a tensor: scalars, gradients over layers, and values selected by filters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.parse import Recipe

#: Filters that match every name.
_ANY = (None, "*")


def resolve(recipe: Recipe, part: int, name: str, position: float) -> tuple[list[float] | None, dict[str, Any]]:
    """Return weights and parameters for one output tensor.

    Parameters of a source override those of its slice, which override those of the recipe.

    Args:
        recipe: the recipe.
        part: index of the slice that the tensor belongs to.
        name: name of the tensor.
        position: relative depth of the tensor's layer in the slice, from 0 to 1; 0 outside the layers.

    Returns:
        One weight per source, or None if no source has a weight; and the parameters by name, where per-model parameters
        are lists with one value per source.

    Raises:
        WeightspaceError: sources disagree on a parameter that has one value for all models, or only some set it.
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
                    f"Method {recipe.method!r} takes one {key!r} for all models, but the sources of {name!r} set "
                    f"{', '.join(map(str, found))}. Expected one value."
                )
            values[key] = given[0]
    return weights, values


def unweighted(recipe: Recipe, part: int, name: str, position: float) -> list[str]:
    """Return the models without a weight for a tensor, in a slice that sets weights; they count as 1.

    Args:
        recipe: the recipe; its method has weights.
        part: index of the slice that the tensor belongs to.
        name: name of the tensor.
        position: relative depth of the tensor's layer in the slice.
    """
    piece = recipe.slices[part]
    levels = (piece.parameters, piece.module_parameters, recipe.parameters)
    if not any("weight" in level for level in (*(source.parameters for source in piece.sources), *levels)):
        return []
    base = recipe.bases[part] if find_method(recipe.method).base != "none" else None
    return [
        source.model
        for source in piece.sources
        if source.model != base and _first("weight", name, position, (source.parameters, *levels)) is None
    ]


def unmatched_filters(recipe: Recipe, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the filters that match no tensor, as pairs of parameter and filter.

    Args:
        recipe: the recipe.
        names: names of all float tensors of the output.
    """
    known = list(names)
    return [
        (key, text)
        for key, text in dict.fromkeys(_filters(recipe))
        if text not in _ANY and not any(text in name for name in known)
    ]


def _filters(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield every filter as a pair of parameter and filter."""
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
    """Return the value at the first level that defines one for the tensor, or None."""
    for level in levels:
        if key in level:
            value = _value(level[key], name, position)
            if value is not None:
                return value
    return None


def _value(setting: Any, name: str, position: float) -> Any:
    """Return the value of a setting for a tensor, or None if no filter matches."""
    if is_filtered(setting):
        for choice in setting:
            if choice.get("filter") in _ANY or choice["filter"] in name:
                return _value(choice["value"], name, position)
        return None
    return _interpolated(setting, position) if isinstance(setting, list) else setting


def _interpolated(anchors: list[Any], position: float) -> Any:
    """Interpolate linearly between equally spaced anchors; strings and booleans take the anchor before the position."""
    place = position * (len(anchors) - 1)
    if any(isinstance(anchor, bool | str) for anchor in anchors):
        return anchors[int(place)]
    before = min(int(place), max(0, len(anchors) - 2))
    if place == before or len(anchors) == 1:
        return anchors[before]
    return anchors[before] + (place - before) * (anchors[before + 1] - anchors[before])
