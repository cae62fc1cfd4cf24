"""User methods without running them: parameters are read from the source, for plans that execute no custom code."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.methods._registry import Method, Parameter
from weightspace.suggestions import unknown
from weightspace.user_code import read_source

#: Permitted types of a parameter's default.
_DEFAULTS = (bool, int, float, str)


@dataclass(frozen=True)
class UnrunMethod(Method):
    """The row of a method whose code was not run.

    Attributes:
        known: whether its parameters could be read; otherwise any are accepted.
    """

    known: bool = True

    @property
    def note(self) -> str:
        """The note to show about it."""
        how = "its parameters were read from its source" if self.known else "its parameters are not checked"
        return f"{self.name} was not loaded: a dry run runs no custom code, and {how}."

    def arguments(self, values: Mapping[str, Any], models: int) -> dict[str, Any]:
        """Return the keyword arguments of the function, checked if the parameters are known."""
        return super().arguments(values, models) if self.known else dict(values)


def unrun_method(source: str) -> UnrunMethod:
    """Return the row of a user's method from its source alone.

    Args:
        source: ``file.py:function``. If it isn't defined there by a plain ``def`` (imported, made by a call,
            decorated), any parameters are accepted.

    Raises:
        WeightspaceError: the file doesn't exist or isn't Python, doesn't define that name, or the function's arguments
            aren't those of a method.
    """
    path, _, name = source.rpartition(":")
    tree = _parsed(Path(path))
    node = _defined(tree, name.split("."), path)
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return _row(source, (), known=False)
    arguments = node.args
    if len([*arguments.posonlyargs, *arguments.args]) != 3:
        raise WeightspaceError(
            f"{source} must be a function (tensors, weights, base, *, …); found one that takes "
            f"({ast.unparse(arguments)[:200]})."
        )
    pairs = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    parameters = [_parameter(argument.arg, default, source) for argument, default in pairs]
    plain = [parameter for parameter in parameters if parameter is not None]
    return _row(source, tuple(plain), known=len(plain) == len(parameters))


def _row(source: str, parameters: tuple[Parameter, ...], *, known: bool) -> UnrunMethod:
    return UnrunMethod(
        source, source, "", source, parameters, base="optional", granularity="whole", scale_free=False, known=known
    )


def _parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file."""
    try:
        return ast.parse(read_source(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise WeightspaceError(f"{path}{line} isn't valid Python: {said}.") from error


def _defined(tree: ast.Module, names: list[str], path: str) -> ast.AST | None:
    """Return the definition that a dotted name refers to; None if finding it would require running code."""
    body: list[ast.stmt] = tree.body
    node: ast.AST | None = None
    for at, name in enumerate(names, start=1):
        bound = _bound(body)
        if name not in bound:
            if any(isinstance(one, ast.ImportFrom) and one.names[0].name == "*" for one in body):
                return None
            raise unknown(f"object in {path}", name, [known for known in bound if known[0] != "_"])
        node = bound[name]
        if at < len(names) and not isinstance(node, ast.ClassDef):
            return None
        body = node.body if isinstance(node, ast.ClassDef) else []
    return node


def _bound(body: list[ast.stmt]) -> dict[str, ast.AST | None]:
    """Return the names bound by statements, with their definitions; those bound in other ways have None."""
    bound: dict[str, ast.AST | None] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound[statement.name] = None if statement.name in bound else statement
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound[node.id] = None
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound[node.name] = None
            elif isinstance(node, ast.alias):
                bound[node.asname or node.name.partition(".")[0]] = None
    return bound


def _parameter(name: str, default: ast.expr | None, source: str) -> Parameter | None:
    """Return a keyword-only argument as a parameter; None if its default isn't a literal."""
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except (ValueError, TypeError, RecursionError):
            return None
        if isinstance(value, _DEFAULTS):
            return Parameter(name, value, "")
    raise WeightspaceError(f"{source}: parameter {name!r} needs a default that is a number, a bool or a string.")
