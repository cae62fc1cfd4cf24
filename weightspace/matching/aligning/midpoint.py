"""The network midway between a target and an aligned source, and the divergence of its outputs from its parents'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.symmetry.kinds.action import Maps, act_on
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.outputs import tensors_in

Forward = Callable[[nn.Module, Any], Any]


def logits_of(network: nn.Module, forward: Forward, batch: Any) -> Tensor:
    """Return what a network returns while it runs on a batch: rows of logits, ``(rows, classes)``.

    Raises:
        WeightspaceError: it returns no floating-point tensor.
    """
    seen: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, result: Any) -> None:
        seen.extend(tensor for tensor in tensors_in(result) if tensor.is_floating_point() and tensor.ndim > 1)

    handle = network.register_forward_hook(note)
    try:
        forward(network, batch)
    finally:
        handle.remove()
    if not seen:
        raise WeightspaceError(f"{type(network).__name__} returns no logits: no floating-point tensor with two axes.")
    return seen[0].flatten(0, -2)


def divergence(targets: Tensor, logits: Tensor) -> Tensor:
    """Return the mean KL divergence in nats of the predictions from probabilities, both ``(rows, classes)``."""
    return kl_div(log_softmax(logits, dim=-1), targets, reduction="batchmean")


class Outputs:
    """The divergence of a network's outputs from the mean logits of its parents.

    Args:
        network: any network of the architecture; its weights are overwritten.
        parents: weights of the parents.
        batches: inputs.
        forward: runs a network on a batch.
    """

    def __init__(
        self, network: nn.Module, parents: Sequence[StateDict], batches: Sequence[Any], forward: Forward
    ) -> None:
        self.network, self.batches, self.forward = network.eval(), batches, forward
        self.tensors = network.state_dict()
        self.targets = self._mean_predictions(parents)

    @torch.no_grad()
    def _mean_predictions(self, parents: Sequence[StateDict]) -> list[Tensor]:
        totals: list[Tensor] = []
        for number, state in enumerate(parents):
            self.write(state)
            logits = [logits_of(self.network, self.forward, batch) for batch in self.batches]
            totals = [a + b for a, b in zip(totals, logits, strict=True)] if number else logits
        return [softmax(total / len(parents), dim=-1) for total in totals]

    @torch.no_grad()
    def write(self, state: StateDict) -> None:
        """Overwrite some of the network's tensors."""
        for name, tensor in state.items():
            self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def divergence(self) -> float:
        """Return the mean divergence over all rows of all batches, in nats."""
        total = rows = 0.0
        for batch, targets in zip(self.batches, self.targets, strict=True):
            logits = logits_of(self.network, self.forward, batch)
            total += float(divergence(targets, logits)) * len(targets)
            rows += len(targets)
        return total / rows


@dataclass(frozen=True)
class Midpoint:
    """The network midway between a target and a moved source.

    Attributes:
        spec: of the architecture.
        target: canonical weights.
        source: canonical weights.
        outputs: measures a network whose parents are the two.
    """

    spec: SymmetrySpec
    target: StateDict
    source: StateDict
    outputs: Outputs

    def move(self, maps: Maps, names: Iterable[str] | None = None) -> None:
        """Write the mean of the target and of the source moved by maps of all groups.

        Args:
            maps: group -> map.
            names: tensors to write, by default all.
        """
        self.outputs.write({name: self._mean(name, maps) for name in (self.target if names is None else names)})

    def _mean(self, name: str, maps: Maps) -> Tensor:
        mean = self.target[name]
        return (mean + act_on(self.spec, maps, name, self.source[name])) / 2 if mean.is_floating_point() else mean

    def divergence(self) -> float:
        """Return the divergence of its outputs, in nats."""
        return self.outputs.divergence()

    def of(self, element: Element) -> float:
        """Return the divergence with the source moved by an element, in nats."""
        self.move(element.moves)
        return self.divergence()
