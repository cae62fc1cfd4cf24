"""Outputs of a network, as plain tensors.

Libraries return dicts, dataclasses and attention caches; only tensors in tuples, lists and mappings count. A cache of
keys and values isn't an output: it is the state for the network's next call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.symmetry.inputs import Inputs


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


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return ‖after − before‖ / ‖before‖ in float64."""
    difference = (after.double() - before.double()).norm()
    return float((difference / before.double().norm().clamp_min(1e-300)).detach())


def output_vector(module: nn.Module, inputs: Inputs) -> Tensor:
    """Return all floating-point outputs of a network as one vector."""
    with torch.no_grad():
        listed = list(tensors_in(inputs.call(module)))
    flat = [tensor.flatten() for tensor in listed if tensor.is_floating_point()]
    if not flat:
        raise SpecError(f"{type(module).__name__} returns no floating-point tensor to verify a spec with.")
    joined = torch.cat(flat)
    if not bool(joined.isfinite().all()):
        raise SpecError(f"{type(module).__name__} returns non-finite values, so no spec can be verified.")
    return joined
