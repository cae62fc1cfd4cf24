"""Bounds of searched parameters: the ends of a range, and listed values, are checked before the first trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.methods import Method, Parameter
from weightspace.merging.methods._registry import check_nonnegative
from weightspace.merging.recipe.merge_roles import find_method


def check_bounds(document: Any, place: Sequence[str | int], values: Sequence[Any], title: str) -> None:
    """Check that the method of a recipe permits the values that are searched for one of its parameters.

    Where the method is searched, too, one method that permits them suffices: others are impossible in some trials.

    Args:
        document: the recipe, with searched values as they were written.
        place: the parameter's keys and indices from the top.
        values: the ends of its range, or the values in its list.
        title: the place in errors.

    Raises:
        WeightspaceError: no method permits one of the values.
    """
    if "parameters" not in place[:-1] or place[-1] == "filter":
        return
    depth = len(place) - 1 - list(reversed(place)).index("parameters")
    rows = list(_methods(document, place[:depth]))
    for value in _scalars(values):
        errors = [_error(row, str(place[depth + 1]), value) for row in rows]
        if errors and all(errors):
            raise WeightspaceError(f"{title} is searched outside its bounds. {errors[0]} Change the range or the list.")


def _methods(document: Any, place: Sequence[str | int]) -> Iterator[Method]:
    """Yield the methods that may read the parameters at a place: those of the nearest recipe around it."""
    method: Any = None
    at: Any = document
    for step in (*place, None):
        method = at.get("merge_method", method) if isinstance(at, dict) else method
        at = at[step] if step is not None else None
    for name in method.get("choices", []) if isinstance(method, dict) else [method]:
        try:
            yield find_method(name)
        except (WeightspaceError, TypeError, AttributeError):  # told when the candidate is made
            continue


def _scalars(values: Sequence[Any]) -> Iterator[Any]:
    """Yield values, and those of gradients."""
    for value in values:
        if isinstance(value, list):
            yield from _scalars(value)
        else:
            yield value


def _error(row: Method, name: str, value: Any) -> str:
    """Return why a method does not permit a value; empty if it does, or if the candidate's recipe tells it better."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    parameter = next((one for one in row.parameters if one.name == name), None)
    try:
        if name == "weight" and row.nonnegative and is_number:
            check_nonnegative([value], row.name)
        if parameter is not None and (
            is_number if _is_numeric(parameter) else parameter.choices and isinstance(value, str)
        ):
            parameter.checked(value)
    except WeightspaceError as error:
        return str(error)
    return ""


def _is_numeric(parameter: Parameter) -> bool:
    """Return whether a parameter is a number, and neither a word nor true or false."""
    return not parameter.choices and not isinstance(parameter.default, bool | str)
