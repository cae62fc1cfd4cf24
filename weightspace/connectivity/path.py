"""Networks on the line or the plane through others, in place: one module, and the state dicts beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.measure import is_inexact
from weightspace.elementwise.coefficients import shares
from weightspace.elementwise.combination import combine
from weightspace.elementwise.counting import agreed
from weightspace.elementwise.precision import output_dtype
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


@torch.no_grad()
def combined(network: nn.Module, states: Sequence[StateDict], coefficients: Sequence[float]) -> nn.Module:
    """Set the weights of ``network`` to ``Σ c_i states_i``, and return it.

    Args:
        network: its parameters and buffers are overwritten.
        states: their names and shapes are those of the network.
        coefficients: one a state; they sum to 1.

    Raises:
        WeightspaceError: integer tensors of the states differ.
    """
    for name, tensor in network.state_dict().items():
        models = [state[name] for state in states]
        if is_inexact(tensor):
            tensor.copy_(combine(models, shares(tuple(coefficients)), output_dtype(model.dtype for model in models)))
        else:
            tensor.copy_(agreed(name, models))
    return network
