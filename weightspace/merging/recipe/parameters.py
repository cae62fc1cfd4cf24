"""Read a recipe's parameters: scalars, gradients over layers, and filters with values.

mergekit reads the parameters that a method declares and ignores all others. It also ignores a parameter of a single
model if the method has one value for all models. The same applies here, with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weightspace.merging.methods import METHODS, Method, Parameter
from weightspace.merging.recipe.document import Document, join, kind
from weightspace.suggestions import closest

#: Methods of mergekit that take ``int8_mask``, which changes how masks are stored but not the result.
_MASKED = frozenset(
    (
        *("task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear"),
        *("breadcrumbs", "breadcrumbs_ties", "sce"),
    )
)

#: Methods of mergekit: parameters that it ignores for them are ignored here, too.
_MERGEKIT = _MASKED | frozenset(
    (
        *("linear", "slerp", "nuslerp", "multislerp", "karcher", "passthrough"),
        *("model_stock", "nearswap", "arcee_fusion", "ram", "ramplus_tl"),
    )
)

#: Parameters of any method, of this library or of mergekit.
PARAMETERS = frozenset(
    {parameter.name for row in METHODS.values() for parameter in row.parameters} | {"weight", "int8_mask", "eps"}
)

#: Parameters that mergekit lacks: a single model may set them, as long as all models agree.
_OWN = frozenset(("seed", "scope"))

#: Keys in place of values in the recipes of a search.
_SEARCHED = ("search", "choices")

#: Strings that mergekit accepts as booleans.
TRUE = ("true", "yes", "on", "t", "y", "1")
FALSE = ("false", "no", "off", "f", "n", "0")


def read_parameters(
    document: Document, holder: Mapping[str, Any], row: Method, path: str, *, single: bool = False
) -> dict[str, Any]:
    """Return the parameters that a part of a recipe sets, without those that have no effect.

    Args:
        document: the recipe.
        holder: the recipe itself, or one of its modules, slices or models.
        row: the method.
        path: path of ``holder`` in the document.
        single: whether ``holder`` is a single model.

    Raises:
        WeightspaceError: a parameter is unknown or has an invalid value; or as in ``Document.ignore``.
    """
    path = join(path, "parameters")
    content = document.mapping(holder.get("parameters") or {}, path)
    known = {parameter.name: parameter for parameter in row.parameters}
    names = parameter_names(row)
    for key, value in content.items():
        _check(document, key, names, row, path, single=single)
        if value == []:
            document.ignore(key, path, "it is an empty list; expected a gradient of numbers or filters")
    return {
        key: _setting(document, content[key], join(path, key), known.get(key))
        for key in names
        if key in content and not (single and is_shared(row, key)) and content[key] != []
    }


def parameter_names(row: Method) -> list[str]:
    """Return the names of a method's parameters, including the weight if its models have weights."""
    return [*(parameter.name for parameter in row.parameters), *(["weight"] if row.weighted else [])]


def is_mergekits(method: object) -> bool:
    """Return whether mergekit has a method of this name."""
    return isinstance(method, str) and method in _MERGEKIT


def gives_base(row: Method) -> bool:
    """Return whether mergekit returns the base itself if there are no other models."""
    return row.name in _MERGEKIT and row.base == "required" and row.models == (1, None)


def takes_base_as_model(row: Method, parameters: Mapping[str, Any]) -> bool:
    """Return whether mergekit merges a base that is not listed among the models as an additional model.

    It does so if the method takes no base and the parameters for all models determine the base's weight.
    """
    if row.name not in _MERGEKIT or row.base != "none" or row.models[1] is not None:
        return False
    return not row.weighted or "weight" in parameters


def _check(document: Document, key: str, names: list[str], row: Method, path: str, *, single: bool) -> None:
    """Refuse an unknown parameter, and report one without effect."""
    if key in names:
        if single and is_shared(row, key):
            document.ignore(
                key, path, f"method {row.name!r} has one value for all models; set it in the recipe's parameters"
            )
        return
    if key == "int8_mask" and (row.name in _MASKED or row.name not in _MERGEKIT):
        return
    owner = f" of method {row.name!r}"
    if document.ignored is not None and row.name in _MERGEKIT and key in PARAMETERS:
        document.ignore(key, path, f"it is not a parameter{owner}")
    else:
        document.unknown(key, [*names, "int8_mask"], path, owner)


def is_shared(row: Method, key: str) -> bool:
    """Return whether mergekit has a single value of the parameter for all models, with a default."""
    if row.name not in _MERGEKIT or key in _OWN or row.models == (1, 1):
        return False
    return any(one.name == key and not one.per_model and one.default is not None for one in row.parameters)


def _setting(document: Document, value: Any, path: str, parameter: Parameter | None) -> Any:
    """Return a parameter's setting: a scalar, a gradient or a list of filters with values."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return _scalar(document, value, path, parameter)
    if not any(isinstance(entry, dict) for entry in value):
        return [_scalar(document, entry, path, parameter, in_gradient=True) for entry in value]
    choices = []
    for index, entry in enumerate(value):
        here = f"{path}[{index}]"
        choice = document.mapping(entry, here)
        if any(key in choice for key in _SEARCHED):
            raise document.error(path, f"must be a number, found {kind(choice)}")
        for key in choice if "value" not in choice else ():
            if (guess := closest(str(key), (*_SEARCHED, "value"))) is not None:
                raise document.error(path, f"has the key {key!r} (did you mean {guess!r}?)")
        document.known(choice, ("filter", "value"), here)
        if choice.get("value") is None or choice["value"] == []:
            raise document.error(f"{here}.value", "is missing")
        setting = _setting(document, choice["value"], f"{here}.value", parameter)
        choices.append({"filter": document.text(choice, "filter", here), "value": setting})
    return choices


def _scalar(
    document: Document, value: Any, path: str, parameter: Parameter | None, *, in_gradient: bool = False
) -> bool | int | float | str:
    """Return a scalar of the parameter's type. Numeric strings are accepted, since YAML reads 1e-5 as a string.

    Raises:
        WeightspaceError: the value has another type.
    """
    default = None if parameter is None else parameter.default
    words = () if parameter is None else parameter.choices
    if words or isinstance(default, str):
        if isinstance(value, bool | str):
            return value
        if "true" not in words:
            raise document.error(path, f"must be a string, found {kind(value)}")
    if words or isinstance(default, bool):
        return _boolean(document, value, path)
    number = _number(value)
    if number is None:
        expected, place = ("a gradient of numbers", " in it") if in_gradient else ("a number", "")
        raise document.error(path, f"must be {expected}, found {kind(value)}{place}")
    return number


def _boolean(document: Document, value: Any, path: str) -> bool:
    """Return a boolean. As in mergekit, strings such as ``yes`` and the numbers 0 and 1 are accepted."""
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in (*TRUE, *FALSE):
        return value.lower() in TRUE
    raise document.error(path, f"must be true or false, found {kind(value)}")


def _number(value: Any) -> int | float | None:
    """Return a value as a finite number, or None if it is not one."""
    if not isinstance(value, bool | int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else number
