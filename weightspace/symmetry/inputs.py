"""Example inputs of a network: positional, by name, or a single tensor.

A tuple is passed as positional arguments; a mapping (such as a batch of a Hugging Face tokenizer) as keyword arguments;
a tensor is the only argument. Integer inputs are supported: token ids, masks, flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError

#: Inputs that a network can be traced and verified with.
ExampleInputs: TypeAlias = "tuple[Any, ...] | Mapping[str, Any] | Tensor"


class Inputs(NamedTuple):
    """The arguments of one call of a network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_args: ExampleInputs) -> Inputs:
        """Convert example inputs to the arguments of a call.

        Raises:
            SpecError: they aren't a tuple, a mapping of names or a tensor.
        """
        if isinstance(example_args, Inputs):
            return example_args
        if isinstance(example_args, Tensor):
            return cls((example_args,), {})
        if isinstance(example_args, tuple):
            return cls(example_args, {})
        if isinstance(example_args, Mapping) and all(isinstance(name, str) for name in example_args):
            return cls((), dict(example_args))
        found = type(example_args).__name__
        raise SpecError(
            f"Example inputs are a tuple, a mapping of keyword inputs such as {{'input_ids': …}}, or one tensor; found "
            f"{'a module, which is the first argument' if isinstance(example_args, nn.Module) else found}."
        )

    def call(self, module: nn.Module) -> Any:
        """Call a network and return its output."""
        return module(*self.args, **self.kwargs)

    def double(self) -> Inputs:
        """Return the inputs with floating-point tensors converted to float64."""
        doubled = {name: _double(value) for name, value in self.kwargs.items()}
        return Inputs(tuple(map(_double, self.args)), doubled)

    def described(self) -> str:
        """Return names, shapes and dtypes of the input tensors, for errors."""
        named = {**{str(number): one for number, one in enumerate(self.args)}, **self.kwargs}
        listed = [
            ("" if name.isdigit() else f"{name} ") + f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}"
            for name, one in named.items()
            if isinstance(one, Tensor)
        ]
        return ", ".join(listed) or "no tensors"


def _double(value: Any) -> Any:
    return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value
