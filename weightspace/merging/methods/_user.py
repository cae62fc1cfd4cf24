"""A user's merge method from a Python file: a plain function of the whole tensors of one name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.merging.methods._registry import Method, Parameter
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.user_code import failure, load_object


def user_method(source: str) -> Method:
    """Return the row of a user's method.

    Args:
        source: ``file.py:function``, a function ``(tensors, weights, base, **parameters) -> tensor``: one float tensor
            (at least float32) and one weight per model, and the base's tensor or None. Its keyword-only arguments with
            a default that is a number, a bool or a string become parameters.

    Raises:
        WeightspaceError: the function doesn't exist, or has other arguments.
    """
    function = load_object(source)
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        arguments = []
    positional = [a for a in arguments if a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)]
    keywords = [a for a in arguments if a.kind is a.KEYWORD_ONLY]
    if len(positional) != 3:
        raise WeightspaceError(
            f"{source} must be a function (tensors, weights, base, *, …); found one that takes "
            f"({', '.join(map(str, arguments))})."
        )
    for argument in keywords:
        if not isinstance(argument.default, bool | int | float | str):
            raise WeightspaceError(
                f"{source}: parameter {argument.name!r} needs a default that is a number, a bool or a string."
            )
    parameters = tuple(Parameter(argument.name, argument.default, "") for argument in keywords)
    return Method(source, source, "", source, parameters, base="optional", granularity="whole", scale_free=False)


def load_user_method(source: str) -> Callable[..., Formula]:
    """Return a user's function in the form of a built-in method."""
    function = load_object(source)

    def method(stack: TensorStack, weights: Sequence[float], **parameters: Any) -> Formula:
        def formula(chunk: Chunk) -> Tensor:
            # The user's function may work in place; the tensors may belong to the caller of merge.
            base = None if chunk.base is None else chunk.base.clone()
            try:
                merged = function([tensor.clone() for tensor in chunk.tensors], list(weights), base, **parameters)
            except Exception as error:
                said = failure(error, Path(source.rpartition(":")[0]))
                raise WeightspaceError(f"{stack.name!r} cannot be merged by {source}: {said}") from error
            if not isinstance(merged, Tensor) or merged.shape != chunk.tensors[0].shape:
                found = tuple(merged.shape) if isinstance(merged, Tensor) else type(merged).__name__
                raise WeightspaceError(
                    f"{source} returned {found} for {stack.name!r}; expected a tensor of shape {stack.shape}."
                )
            return merged.detach().to(stack.dtype)

        return formula

    return method
