"""Networks of a task with given weights, built without a trace in torch's global generator."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.tasks.protocol import Task


def blank_network(task: Task) -> nn.Module:
    """Return a new network of the task in evaluation mode, whose random weights are meant to be overwritten."""
    with torch.random.fork_rng(devices=[]):
        return task.network().eval()


def check_belongs(task: Task, network: nn.Module, state: StateDict, name: str) -> None:
    """Check that a state dict has the names and shapes of a network of the task.

    Args:
        task: is named in the error.
        network: of the task.
        state: to be checked.
        name: how the error calls the state dict.

    Raises:
        CheckpointError: it does not.
    """
    check_compatible(network.state_dict(), state, names=(f"the network of {task.name}", name))


def network_with(task: Task, state: StateDict, name: str = "the checkpoint") -> nn.Module:
    """Return a new network of the task with these weights, in evaluation mode.

    Raises:
        CheckpointError: the weights have other names or shapes than the network.
    """
    network = blank_network(task)
    check_belongs(task, network, state, name)
    network.load_state_dict(state)
    return network
