"""The network midway between a target and an aligned source, and the divergence of its outputs from its parents'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.symmetry.kinds.action import Maps, act_on
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


class Midpoint:
    """The network midway, and its divergence from the mean logits of its parents.

    Args:
        spec: of the architecture.
        network: any network of the architecture; its weights are overwritten.
        target: canonical weights.
        source: canonical weights.
        batches: inputs.
        forward: runs a network on a batch.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        network: nn.Module,
        target: StateDict,
        source: StateDict,
        batches: Iterable[Any],
        forward: Forward,
    ) -> None:
        self.spec, self.target, self.source, self.forward = spec, target, source, forward
        self.network, self.batches = network.eval(), list(batches)
        self.tensors = network.state_dict()
        self.targets = self._mean_predictions()

    @torch.no_grad()
    def _mean_predictions(self) -> list[Tensor]:
        logits = []
        for state in (self.target, self.source):
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])
            logits.append([logits_of(self.network, self.forward, batch) for batch in self.batches])
        return [softmax((a + b) / 2, dim=-1) for a, b in zip(*logits, strict=True)]

    @torch.no_grad()
    def move(self, maps: Maps, names: Sequence[str] | None = None) -> None:
        """Write the mean of the target and the source moved by maps of all groups.

        Args:
            maps: group -> map.
            names: tensors to write, by default all.
        """
        for name in self.tensors if names is None else names:
            mean = self.target[name]
            if mean.is_floating_point():
                mean = (mean + act_on(self.spec, maps, name, self.source[name])) / 2
            self.tensors[name].copy_(mean)

    @torch.no_grad()
    def divergence(self) -> float:
        """Return the mean divergence over all rows of all batches, in nats."""
        total = rows = 0.0
        for batch, targets in zip(self.batches, self.targets, strict=True):
            logits = logits_of(self.network, self.forward, batch)
            total += float(divergence(targets, logits)) * len(targets)
            rows += len(targets)
        return total / rows
