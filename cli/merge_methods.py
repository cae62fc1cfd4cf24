"""Methods of ``weightspace merge`` on the command line: their parameters as options, and one that was forgotten."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from weightspace import WeightspaceError
from weightspace.merging import METHODS
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code

Command = Callable[..., Any]

#: What the options of parameters begin with among those of the command.
_PREFIX = "parameter_"


def parameter_options(command: Command) -> Command:
    """Give the command an option for every parameter of every method."""
    users: dict[str, dict[str, list[str]]] = {}  # methods by the meaning of a parameter, by its name
    for row in METHODS.values():
        for parameter in row.parameters:
            users.setdefault(parameter.name, {}).setdefault(parameter.help, []).append(row.name)
    for name in sorted(users.keys() - {"seed"}, reverse=True):
        text = "; ".join(f"{meaning} ({', '.join(methods)})" for meaning, methods in users[name].items())
        text = f"{text[0].upper()}{text[1:]}."
        command = click.option(_flag(name), f"{_PREFIX}{name}", metavar="VALUE", help=text)(command)
    return command


def parameters_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that were given as options."""
    given = {name.removeprefix(_PREFIX): value for name, value in said.items() if name.startswith(_PREFIX)}
    return {name: _value(value) for name, value in given.items() if value is not None}


def is_recipe(sources: Sequence[str]) -> bool:
    """Return whether what is merged is a recipe."""
    return len(sources) == 1 and sources[0].lower().endswith((".yml", ".yaml"))


def check_method(sources: Sequence[str], said: Mapping[str, Any]) -> None:
    """Check the name of the method, and guess it where ``-m`` was forgotten, before anything is read.

    Raises:
        WeightspaceError: there is no such method; a method stands among the checkpoints; or parameters were given that
            ``linear`` does not have, which is meant without ``-m``.
    """
    method = said["method"]
    if method is not None:
        if method not in METHODS and not is_user_code(method):
            raise unknown("merging method", method, METHODS)
        return
    for source in sources:
        if source in METHODS and not os.path.lexists(source):
            raise WeightspaceError(f"{source!r} is a method and no checkpoint. Did you mean -m {source}?")
    given = set(parameters_of(said))
    if is_recipe(sources) or given <= _names("linear"):
        return
    wanted = [name for name in METHODS if given <= _names(name)]
    fitting = [name for name in wanted if (METHODS[name].base == "required") == (said["base"] is not None)] or wanted
    flags = " and ".join(sorted(map(_flag, given - _names("linear"))))
    if not wanted:
        raise WeightspaceError(f"No method has all of {flags}, and -m was not given. Say which one it is.")
    guess = min(fitting, key=_year)
    raise WeightspaceError(
        f"{flags}: not for linear, the method without -m. Did you mean -m {guess}? Those that take it are "
        f"{', '.join(wanted)}."
    )


def _names(method: str) -> set[str]:
    return {parameter.name for parameter in METHODS[method].parameters}


def _year(method: str) -> int:
    """Return the year in which a method was published; those without one are the latest."""
    found = re.search(r"\b(?:19|20)\d\d\b", METHODS[method].source)
    return int(found[0]) if found else 9999


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _value(text: str) -> Any:
    """Return a parameter as a recipe would have it: a number, a bool, a word, or a list of them."""
    if "," in text:
        return [_value(part) for part in text.split(",")]
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
