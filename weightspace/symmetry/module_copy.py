"""Copies of a user's module, which itself comes back from every derivation as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError


def copy_module(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module.

    Tensors that it computed from its parameters and keeps (``weight`` of the older ``weight_norm``, caches) cannot be
    copied with their history; the copy has their values.

    Raises:
        SpecError: the module holds something else that cannot be copied.
    """
    computed = {id(tensor): tensor.detach().clone() for tensor in _attributes(module) if not tensor.is_leaf}
    try:
        return copy.deepcopy(module, computed)
    except Exception as error:  # whatever the objects that a module holds raise
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise SpecError(
            f"{type(module).__name__} cannot be copied, and a copy is what gets traced: {type(error).__name__}: {line}"
        ) from error


def keep_random_state(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context after which torch's random generators are as they were."""
    tensors = [*module.parameters(), *module.buffers()]
    return torch.random.fork_rng(devices=sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda}))


#: How deep tensors are looked for in what a module keeps.
_DEPTH = 6


def _attributes(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors among the attributes of all submodules, those in containers and plain objects included."""
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
