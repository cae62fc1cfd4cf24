"""BatchNorm's statistics between two networks.

The running mean and variance belong to the activations of the network that was trained. Those of a network
between two are other activations, and the interpolated statistics are wrong for them: they are measured anew.
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
from weightspace.tasks.protocol import Task

#: Seed of the training batches that statistics are measured on: the same for every network.
SEED = 0


def has_batchnorm_statistics(module: nn.Module) -> bool:
    """Return whether a BatchNorm layer with running statistics is inside."""
    return bool(_layers(module))


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch at hand inside the block, and average the statistics of these batches.

    The running statistics are the plain average over the batches afterwards. All other layers are in evaluation mode
    meanwhile (no dropout), so that nothing is drawn at random; modes and momenta are as before afterwards.

    Args:
        module: its BatchNorm layers with running statistics are changed in place.
    """
    layers = _layers(module)
    modes = [(part, part.training) for part in module.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        module.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's sign for a cumulative average
            layer.training = True
        yield
    finally:
        for part, training in modes:
            part.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@torch.no_grad()
def run_over(module: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> None:
    """Run a module over batches, without gradients, for what its layers see.

    Args:
        module: is handed to ``forward``.
        batches: training data, in pieces as large as in training.
        forward: runs the module on a batch; what it returns is ignored (``task.loss`` will do).

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

    The statistics are the only thing that changes, and a module without such layers stays as it is.

    Args:
        module: changed in place.
        batches: training data, in pieces as large as in training.
        forward: runs the module on a batch; what it returns is ignored (``task.loss`` will do).

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
    """Return a network's weights with BatchNorm's statistics measured anew over the task's training data.

    Args:
        task: builds the network and has the data.
        state: weights of a network of the task; one without BatchNorm comes back as it is.

    Raises:
        CheckpointError: the weights have other names or shapes than the task's network.
    """
    network = network_with(task, state)
    if not has_batchnorm_statistics(network):
        return state
    reset_batchnorm(network, task.batches("train", SEED), task.loss)
    return {name: tensor.detach() for name, tensor in network.cpu().state_dict().items()}


def _layers(module: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that keep running statistics."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
