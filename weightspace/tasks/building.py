"""Networks of a task with given weights, built without affecting torch's global generator."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.name_maps.expert_layout import ExpertLayout, expert_layout
from weightspace.tasks.protocol import Task


def blank_network(task: Task) -> nn.Module:
    """Return a new network of the task in evaluation mode, whose random weights are to be overwritten."""
    with torch.random.fork_rng(devices=[]):
        return task.network().eval()


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def experts_for(network: nn.Module, state: StateDict) -> ExpertLayout:
    """Return how a state dict names the experts of a network."""
    return expert_layout(shapes_of(network), state)


def check_belongs(task: Task, network: nn.Module, state: StateDict, name: str) -> None:
    """Check that a state dict has the names and shapes of a network of the task.

    Args:
        task: named in the error.
        network: network of the task.
        state: the state dict to check.
        name: name of the state dict in the error.

    Raises:
        CheckpointError: it doesn't have them.
    """
    check_compatible(network.state_dict(), state, names=(f"the network of {task.name}", name))


def fitted(task: Task, network: nn.Module, state: StateDict, name: str) -> StateDict:
    """Return a state dict with the names and shapes of a network of the task.

    Experts may be separate, as in files of transformers, where the network has them stacked; they are stacked.

    Args:
        task: named in the error.
        network: network of the task.
        state: the state dict; returned as it is if it has the network's names.
        name: name of the state dict in the error.

    Raises:
        CheckpointError: it has other names or shapes, or the experts to be stacked have different dtypes.
    """
    state = experts_for(network, state).stacked(state)
    check_belongs(task, network, state, name)
    return state


def network_with(task: Task, state: StateDict, name: str = "the checkpoint") -> nn.Module:
    """Return a new network of the task with these weights, in evaluation mode.

    Experts may be separate, as for ``fitted``.

    Raises:
        CheckpointError: the names or shapes of the weights differ from the network's.
    """
    network = blank_network(task)
    network.load_state_dict(fitted(task, network, state, name))
    return network
