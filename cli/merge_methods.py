"""Method parameters of ``weightspace merge`` as options, and a guess of the method if ``-m`` is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from weightspace.cli import options

from weightspace import WeightspaceError
from weightspace.merging import METHODS
from weightspace.merging.recipe.types import SCHEMES
from weightspace.suggestions import unknown
from weightspace.user_code import is_user_code

Command = Callable[..., Any]

#: Prefix of method parameters among the command's parameters.
_PREFIX = "parameter_"


def parameter_options(command: Command) -> Command:
    """Add an option for every parameter of every method."""
    users: dict[str, dict[str, list[str]]] = {}  # parameter -> help text -> methods
    for row in METHODS.values():
        for parameter in row.parameters:
            users.setdefault(parameter.name, {}).setdefault(parameter.help, []).append(row.name)
    for name in sorted(users.keys() - {"seed"}, reverse=True):
        text = "; ".join(f"{meaning} ({', '.join(methods)})" for meaning, methods in users[name].items())
        text = f"{text[0].upper()}{text[1:]}."
        command = click.option(_flag(name), f"{_PREFIX}{name}", metavar="VALUE", help=text)(command)
    return command


def dtype_options(command: Command) -> Command:
    """Add the options for the output's dtype and quantisation."""
    decorators = (
        click.option(
            "--dtype",
            metavar="DTYPE",
            help="Dtype of the output: float32, float16 or bfloat16; by default that of the inputs. Recipes set it "
            "themselves.",
        ),
        click.option("--out-dtype", metavar="DTYPE", help="Dtype of the output, by the name used in recipes."),
        click.option(
            "--quantise",
            metavar="SCHEME",
            shell_complete=options.completing(SCHEMES),
            help="Write matrices as 8-bit numbers (linear layers as FP8, or Q8_0 in GGUF files) with one scale per "
            f"{', '.join(f'{unit} ({name})' for name, unit in SCHEMES.items())}.",
        ),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def parameters_of(opts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method parameters that were given as options."""
    given = {name.removeprefix(_PREFIX): value for name, value in opts.items() if name.startswith(_PREFIX)}
    return {name: _value(value) for name, value in given.items() if value is not None}


def is_recipe(sources: Sequence[str]) -> bool:
    """Return whether the sources are a single recipe."""
    return len(sources) == 1 and sources[0].lower().endswith((".yml", ".yaml"))


def check_method(sources: Sequence[str], opts: Mapping[str, Any]) -> None:
    """Check the name of the method, or guess it if ``-m`` is missing, before anything is read.

    Raises:
        WeightspaceError: there is no such method; it lacks some of the parameters, or one is no number; a method is
            listed among the checkpoints; or ``-m`` is missing and ``linear``, the default, lacks some of the
            parameters.
    """
    method = opts["method"]
    if method is not None:
        if method not in METHODS and not is_user_code(method):
            raise unknown("merging method", method, METHODS)
        if method in METHODS and not is_recipe(sources):
            _check_parameters(method, opts)
        return
    for source in sources:
        if source in METHODS and not os.path.lexists(source):
            raise WeightspaceError(f"{source!r} is a method, not a checkpoint. Did you mean -m {source}?")
    given = set(parameters_of(opts))
    if is_recipe(sources):
        return
    if given <= _names("linear"):
        _check_parameters("linear", opts)
        return
    wanted = [name for name in METHODS if given <= _names(name)]
    fitting = [name for name in wanted if (METHODS[name].base == "required") == (opts["base"] is not None)] or wanted
    flags = " and ".join(sorted(map(_flag, given - _names("linear"))))
    if not wanted:
        raise WeightspaceError(f"No method has all of {flags}. Choose one with -m.")
    guess = min(fitting, key=_year)
    raise WeightspaceError(
        f"{flags}: not an option of linear, the default method. Did you mean -m {guess}? Methods with this option: "
        f"{', '.join(wanted)}."
    )


def _check_parameters(method: str, opts: Mapping[str, Any]) -> None:
    """Check that a method has the parameters that were given as options, and that numbers are numbers.

    Raises:
        WeightspaceError: the method lacks a parameter, unless ``--lenient`` ignores it; or a value is no number.
    """
    given = parameters_of(opts)
    for name in given:
        users = [other for other in METHODS if name in _names(other)]
        if method not in users and not opts["lenient"]:
            raise WeightspaceError(f"{method} has no {_flag(name)}; {_listed(users)} it.")
    for parameter in METHODS[method].parameters:
        value = given.get(parameter.name)
        words = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
        if words and not parameter.choices and not isinstance(parameter.default, bool | str):
            raise WeightspaceError(f"{_flag(parameter.name)} takes a number, found {words[0][:60]!r}.")


def _listed(methods: Sequence[str]) -> str:
    """Return ``a, b and c have``."""
    *others, last = methods
    return f"{', '.join(others)} and {last} have" if others else f"{last} has"


def _names(method: str) -> set[str]:
    return {parameter.name for parameter in METHODS[method].parameters}


def _year(method: str) -> int:
    """Return the year a method was published in; methods without one sort last."""
    found = re.search(r"\b(?:19|20)\d\d\b", METHODS[method].source)
    return int(found[0]) if found else 9999


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _value(text: str) -> Any:
    """Parse a parameter as in a recipe: a number, a bool, a word, or a list of them."""
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


def check_device_effect(sources: tuple[str, ...], reproduce: str | None, opts: Mapping[str, Any]) -> None:
    """Refuse a device that nothing is computed on."""
    if reproduce is not None:
        options.check_effect(["device"], "without --task")
    elif device_of(sources, {**opts, "device": "other"}) == "cpu":
        method = opts["method"] or "linear"
        options.check_effect(["device"], f"with {method}, which is computed on the CPU, and without --task")


def device_of(sources: tuple[str, ...], opts: Mapping[str, Any]) -> str:
    """Return the device that tensors are merged on."""
    method = METHODS.get(opts["method"] or "linear")
    return opts["device"] if is_recipe(sources) or (method is not None and method.on_device) else "cpu"
