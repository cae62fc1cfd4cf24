"""Outputs of a network, as plain tensors.

Libraries return dicts, dataclasses and attention caches; only tensors in tuples, lists and mappings count. A cache of
keys and values isn't an output: it is the state for the network's next call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a network's output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping) or hasattr(value, "items"):
        for item in dict(value.items()).values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


class Network(nn.Module):
    """A network that returns only the tensors of its output; its own tensors are named ``network.…``."""

    PREFIX = "network."

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Call the network."""
        return tuple(tensors_in(self.network(*args, **kwargs)))
