"""BatchNorm statistics of interpolated networks.

The running mean and variance belong to the activations of the trained network. An interpolated network has different
activations, for which interpolated statistics are wrong; they are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.tasks.building import network_with
from weightspace.tasks.evaluating import evaluating
from weightspace.tasks.protocol import Task

#: Seed of the training batches for measuring statistics, the same for every network.
SEED = 0


def has_batchnorm_statistics(module: nn.Module) -> bool:
    """Return whether a module contains a BatchNorm layer with running statistics."""
    return bool(_layers(module))


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the current batch in BatchNorm layers inside the block, and average the batches' statistics.

    Afterwards, the running statistics are the plain average over the batches. Meanwhile, all other layers are in
    evaluation mode (no dropout), so nothing is random; modes and momenta are restored at the end.

    Args:
        module: its BatchNorm layers with running statistics are modified in place.
    """
    layers = _layers(module)
    momenta = [layer.momentum for layer in layers]
    with evaluating(module):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # means a cumulative average in torch
                layer.training = True
            yield
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


@torch.no_grad()
def run_over(module: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> None:
    """Run a module over batches without gradients, for the side effects on its layers.

    Args:
        module: passed to ``forward``.
        batches: training data, in batches as large as in training.
        forward: runs the module on a batch; its result is ignored (``task.loss`` works).

    Raises:
        WeightspaceError: there are no batches.
    """
    count = 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007
        forward(module, batch)
    if not count:
        raise WeightspaceError("Found no batches to measure statistics on; expected training data.")


def reset_batchnorm(module: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> None:
    """Set the running statistics of every BatchNorm layer to their plain average over the batches.

    Nothing else changes, and a module without such layers is unchanged.

    Args:
        module: modified in place.
        batches: training data, in batches as large as in training.
        forward: runs the module on a batch; its result is ignored (``task.loss`` works).

    Raises:
        WeightspaceError: there are no batches.

    Source:
        Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2; for paths between networks
        Jordan et al. 2023, https://arxiv.org/abs/2211.08403.
    """
    if has_batchnorm_statistics(module):
        with batch_statistics(module):
            run_over(module, batches, forward)


def reset_statistics(task: Task, state: StateDict) -> StateDict:
    """Return a network's weights with BatchNorm statistics recomputed over the task's training data.

    Args:
        task: builds the network and provides the data.
        state: weights of a network of the task; returned as is without BatchNorm.

    Raises:
        CheckpointError: the names or shapes of the weights differ from those of the task's network.
    """
    network = network_with(task, state)
    if not has_batchnorm_statistics(network):
        return state
    reset_batchnorm(network, task.batches("train", SEED), task.loss)
    return {name: tensor.detach() for name, tensor in network.cpu().state_dict().items()}


def _layers(module: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that keep running statistics."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
