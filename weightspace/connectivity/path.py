"""The straight way between two networks, walked in place: one module, and the two state dicts beside it."""

from __future__ import annotations

import torch
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.merging.interpolation import between


@torch.no_grad()
def interpolated(network: nn.Module, a: StateDict, b: StateDict, position: float) -> nn.Module:
    """Set the weights of ``network`` to those at ``position`` between ``a`` and ``b``, and return it.

    The weights are those of ``merging.interpolate`` bit for bit, rounded to the dtype of the network; never
    more than one tensor of them is in memory beside the network's own.

    Args:
        network: its parameters and buffers are overwritten.
        a: position 0; its names and shapes are those of the network (``check_compatible`` says so).
        b: position 1, likewise.
        position: any finite real number.

    Raises:
        WeightspaceError: integer tensors of ``a`` and ``b`` differ.
    """
    for name, tensor in network.state_dict().items():
        tensor.copy_(between(name, a[name], b[name], position))
    return network
