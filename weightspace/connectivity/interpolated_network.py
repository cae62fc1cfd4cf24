"""Networks on the line or plane through others, in place: one module in addition to the state dicts."""

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

    The weights equal those of ``merging.interpolate`` bit for bit, rounded to the dtype of the network. Besides the
    network's own weights, at most one interpolated tensor and its derived tensors are in memory.

    Args:
        network: its parameters and buffers are overwritten.
        a: weights at position 0, with the names and shapes of the network (see ``check_compatible``).
        b: weights at position 1, likewise.
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
        states: state dicts with the names and shapes of the network.
        coefficients: one per state, with sum 1.

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
