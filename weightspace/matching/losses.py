"""The loss of a task as a function of the weights, so that a matching can be judged, and driven, by data.

Networks between two networks have activations of their own: BatchNorm normalises by the batch at hand, whatever the
running statistics are, and leaves these alone. Everything else is as in use (no dropout), so that nothing is drawn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.state import tied_names
from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads

#: Seed of the fixed batches of a split.
_SEED = 0


class Losses:
    """The task's loss at any weights, differentiable in them.

    Args:
        task: builds the network, and has the data and the loss.
        device: where the network runs; where the task builds it if not given.
    """

    def __init__(self, task: Task, *, device: torch.device | str | None = None) -> None:
        with torch.random.fork_rng(devices=[]):  # the weights that it draws are never used
            network = task.network().to(device).eval()
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                layer.training, layer.track_running_stats = True, False
        self.task = task
        self._loss = _LossOfTask(task, network)
        self._own = network.state_dict()
        tied = tied_names(self._own)
        self._names = {name: f"network.{name}" for name in self._own if name not in tied}

    def __call__(self, state: StateDict, batch: Any) -> Tensor:
        """Return the loss of one batch at some weights.

        Args:
            state: every tensor of the network by name, of any float dtype, on any device; not changed. Of names
                that the network ties, the first counts.
            batch: as ``task.batches`` gives it.

        Returns:
            A scalar in nats, differentiable in the tensors of ``state``.

        Raises:
            CheckpointError: the state has other names or shapes than the task's network.
        """
        check_compatible(self._own, state, names=(f"the network of {self.task.name}", "the state"))
        moved = {inside: state[name].to(self._own[name]) for name, inside in self._names.items()}
        return functional_call(self._loss, moved, (batch,))

    @torch.no_grad()
    def mean(self, state: StateDict, split: Split = "validation") -> float:
        """Return the mean loss, in nats, over the batches of a split, which are the same on every call.

        Raises:
            CheckpointError: the state has other names or shapes than the task's network.
            WeightspaceError: the split has no batches.
        """
        with torch_threads(threads_of(self.task)):
            losses = [float(self(state, batch)) for batch in self.task.batches(split, _SEED)]
        if not losses:
            raise WeightspaceError(f"Split {split!r} of task {self.task.name!r} has no batches to measure a loss on.")
        return math.fsum(losses) / len(losses)


class _LossOfTask(nn.Module):
    """A network and its loss as one module, so that its weights can be put in from outside."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        super().__init__()
        self.task, self.network = task, network

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss(self.network, batch)
