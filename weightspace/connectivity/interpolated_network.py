"""Networks on the line or the plane through others, in place: one module, and the state dicts beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weightspace.arithmetic.coefficients import shares
from weightspace.arithmetic.dtypes import output_dtype
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.linear_combination import combine
from weightspace.arithmetic.parametrizations import combined_tensors
from weightspace.arithmetic.running_variances import not_negative
from weightspace.checkpoints import StateDict
from weightspace.merging.interpolate import line


@torch.no_grad()
def interpolated(network: nn.Module, a: StateDict, b: StateDict, position: float) -> nn.Module:
    """Set the weights of ``network`` to those at ``position`` between ``a`` and ``b``, and return it.

    The weights are those of ``merging.interpolate`` bit for bit, rounded to the dtype of the network; never
    more than a tensor of them, and what follows from it, is in memory beside the network's own.

    Args:
        network: its parameters and buffers are overwritten.
        a: position 0; its names and shapes are those of the network (``check_compatible`` says so).
        b: position 1, likewise.
        position: any finite real number.

    Raises:
        WeightspaceError: integer tensors of ``a`` and ``b`` differ.
    """
    own = network.state_dict()
    for name, tensor in line(a, b, position):
        own[name].copy_(tensor)
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
    exact = shares(tuple(coefficients))

    def point(name: str, tensors: list[Tensor]) -> Tensor:
        kept = unaveraged(name, tensors)
        if kept is not None:
            return kept
        return not_negative(name, combine(tensors, exact, output_dtype(one.dtype for one in tensors)), lambda: tensors)

    own = network.state_dict()
    for name, tensor in combined_tensors(states, point):
        own[name].copy_(tensor)
    return network
