"""Parameters of methods that a search did not choose, which the chosen method would refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.parameters import parameter_names


def drop_idle(recipe: dict[str, Any], choices: Sequence[Any]) -> None:
    """Remove the parameters that other choices of the method have, but not the chosen one.

    Args:
        recipe: a document, or a recipe in place of a model, with the chosen method; it is modified.
        choices: all methods among which it was chosen.
    """
    others = {name for method in choices for name in _names(method)}
    _drop(recipe, others - _names(recipe["merge_method"]))


def _drop(content: Any, idle: set[str]) -> None:
    """Remove parameters from a part of a recipe, except from recipes in place of models and later steps."""
    if isinstance(content, list):
        for entry in content:
            _drop(entry, idle)
    elif isinstance(content, dict):
        if isinstance(parameters := content.get("parameters"), dict):
            for name in idle & parameters.keys():
                del parameters[name]
        for key, value in content.items():
            if key not in ("parameters", "then") and not (isinstance(value, dict) and "merge_method" in value):
                _drop(value, idle)


def _names(method: Any) -> set[str]:
    if not isinstance(method, str):  # told when the candidate is made
        return set()
    try:
        return set(parameter_names(find_method(method)))
    except WeightspaceError:  # likewise
        return set()
