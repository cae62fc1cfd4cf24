"""Copies of a user's module, which itself is left unchanged by derivations."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError


def copy_module(
    module: nn.Module, *, share_parameters: bool = False, substitutes: Mapping[int, Tensor] | None = None
) -> nn.Module:
    """Return a deep copy of a module.

    Tensors that it computed from its parameters and keeps (``weight`` of the old ``weight_norm``, caches) can't be
    copied with their autograd history; the copy has their values.

    Args:
        module: the module; not modified.
        share_parameters: whether the parameters of the copy use the memory of the module's; buffers never do.
        substitutes: ``id`` of a tensor of the module -> the tensor that replaces it in the copy.

    Raises:
        SpecError: the module holds something else that can't be copied.
    """
    known = {id(tensor): tensor.detach().clone() for tensor in attributes(module) if not tensor.is_leaf}
    if share_parameters:
        known |= {id(one): nn.Parameter(one.data, one.requires_grad) for one in module.parameters() if is_plain(one)}
    known |= substitutes or {}
    try:
        return copy.deepcopy(module, known)
    except Exception as error:  # objects held by a module may raise anything
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise SpecError(
            f"{type(module).__name__} cannot be copied, which tracing requires: {type(error).__name__}: {line}"
        ) from error


def is_plain(parameter: Tensor) -> bool:
    """Return whether a parameter holds nothing but its values."""
    return type(parameter) is nn.Parameter  # subclasses may keep more than their values


def keep_random_state(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context that restores torch's random generators on exit."""
    tensors = [*module.parameters(), *module.buffers()]
    return torch.random.fork_rng(devices=sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda}))


#: Maximum depth to search a module's attributes for tensors.
_DEPTH = 6


def attributes(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors among the attributes of all submodules, including those in containers and plain objects."""
    seen: set[int] = set()
    for part in module.modules():
        yield from _tensors(vars(part), seen, _DEPTH)


def _tensors(value: Any, seen: set[int], depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and id(value) not in seen and not isinstance(value, nn.Module | type) and not callable(value):
        seen.add(id(value))
        held = value if isinstance(value, list | tuple | set) else getattr(value, "__dict__", {}).values()
        for item in value.values() if isinstance(value, dict) else held:
            yield from _tensors(item, seen, depth - 1)
