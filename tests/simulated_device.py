"""A device without hardware: tensors that say they are on torch's meta device, and have values all the same.

As on a GPU, they don't mix with tensors on the CPU other than scalars, and have to be moved to be read by numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

#: The name of the device.
NAME = "meta"


class Simulated(Tensor):
    """A tensor on the device, around its values on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Simulated:
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=torch.device(NAME), storage_offset=0
        )
        made.inner = values
        return made

    def __repr__(self, **options: Any) -> str:
        return f"Simulated({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Computes on the values; counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _computed(function, args, kwargs or {})
        if any(isinstance(one, Simulated) for one in tree_flatten((args, kwargs))[0]):
            self.operations.append(str(function))
        return result


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation; its result is on the device of its arguments, or the one that it names."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = any(isinstance(one, Simulated) for one in tensors)
    moves = str(function) in ("aten._to_copy.default", "aten.copy_.default")
    if there and not moves and any(not isinstance(one, Simulated) and one.dim() for one in tensors):
        raise AssertionError(f"{function} mixes tensors of two devices")
    if str(function) == "aten.copy_.default":
        args[0].inner.copy_(_plain(args[1])) if isinstance(args[0], Simulated) else args[0].copy_(_plain(args[1]))
        return args[0]
    target = kwargs.get("device")
    if target is not None:
        there = torch.device(target).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if function._schema.name.endswith("_") and isinstance(args[0], Simulated):
        return args[0]
    return tree_map(lambda one: Simulated(one) if there and isinstance(one, Tensor) else one, result)


def _plain(one: Any) -> Any:
    return one.inner if isinstance(one, Simulated) else one


@contextmanager
def simulated_device() -> Iterator[list[str]]:
    """Simulate the device inside the block; yield the names of the operations on it."""
    with _Mode() as mode:
        yield mode.operations
