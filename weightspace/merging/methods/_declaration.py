"""Declaration of merge methods: a decorated function whose annotated keywords are its parameters."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from weightspace.errors import WeightspaceError
from weightspace.merging.methods._registry import Method, Parameter

Function = TypeVar("Function", bound=Callable[..., Any])

#: Rows of the imported methods, by name.
_DECLARED: dict[str, Method] = {}


def merge_method(
    *, formula: str, source: str, global_pass: Callable[..., Any] | None = None, **traits: Any
) -> Callable[[Function], Function]:
    """Declare a function ``(stack, weights, *, …) -> formula`` as the merge method of its name.

    A keyword annotated as ``Annotated[type, Parameter(help=…, low=…, high=…, choices=…)]`` is a parameter; it is
    required if it has no default. If its type is ``Sequence[float]``, it may differ by model, and its default is
    ``(value,)``. If the function computes its default, its type is ``float | None``, its default is None, and
    ``Parameter(computed=…)`` describes the default in words. ``lambda_`` is called ``lambda``. Keywords without such an
    annotation come from the global pass.

    Args:
        formula: one-line description of the computation.
        source: the paper.
        global_pass: ``(stacks, arguments) -> keywords by name of the tensor``, a pass over the whole model.
        traits: further attributes of ``Method``.

    Raises:
        WeightspaceError: a default is None without a description of the computed value.
    """

    def declare(function: Function) -> Function:
        _DECLARED[function.__name__] = Method(
            function.__name__,
            _place(function),
            formula,
            source,
            tuple(_parameters(function)),
            global_pass="" if global_pass is None else _place(global_pass),
            **traits,
        )
        return function

    return declare


def _place(function: Callable[..., Any]) -> str:
    """Return ``file:function``."""
    return f"{function.__module__.rpartition('.')[2]}:{function.__name__}"


def _parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """Yield the annotated keywords of a function."""
    hints = get_type_hints(function, include_extras=True)
    for argument in inspect.signature(function).parameters.values():
        kind, *notes = get_args(_without_optional(hints[argument.name])) or (None,)
        for parameter in notes:
            if isinstance(parameter, Parameter):
                _check_computed(parameter, argument)
                per_model = get_origin(kind) is Sequence
                default = None if argument.default is inspect.Parameter.empty else argument.default
                if isinstance(default, tuple):  # one value for all models
                    (default,) = default
                yield replace(parameter, name=argument.name.rstrip("_"), default=default, per_model=per_model)


def _without_optional(hint: Any) -> Any:
    """Return an annotation without the ``Optional`` that Python 3.10 adds if the default is None."""
    return next((inner for inner in get_args(hint) if get_origin(inner) is Annotated), hint)


def _check_computed(parameter: Parameter, argument: inspect.Parameter) -> None:
    """Check that a parameter describes its computed default if and only if its default is None."""
    if (argument.default is None) != bool(parameter.computed):
        raise WeightspaceError(
            f"Parameter {argument.name!r} has the default {argument.default!r} and computed={parameter.computed!r}. "
            "Expected the default None together with computed, the computed default in words, or neither."
        )


def declared_methods() -> list[Method]:
    """Import all method files and return their rows by name."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")
    return [_DECLARED[name] for name in sorted(_DECLARED)]
