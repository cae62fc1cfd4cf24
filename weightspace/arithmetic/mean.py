"""The plain mean of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import shares
from weightspace.arithmetic.dtypes import output_dtype
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.linear_combination import combine
from weightspace.arithmetic.parametrizations import combined
from weightspace.arithmetic.tied_tensors import by_name
from weightspace.checkpoints import StateDict


@torch.no_grad()
def mean(states: Sequence[StateDict]) -> StateDict:
    """Return the mean of networks; the mean of copies is the copy, bit for bit.

    Args:
        states: one or more state dicts with the same names and shapes.

    Returns:
        New tensors in the dtype of the inputs (promoted if they differ): the exact mean, rounded once, independent of
        the order of the networks. Integer tensors must agree; of counters, the largest is kept. Weights under weight
        norm are averaged as effective weights, and spectral norm's vectors are recomputed for the mean. Tensors tied in
        every network stay tied.

    Raises:
        WeightspaceError: integer tensors differ.
    """
    return combined(states, _mean)


@torch.no_grad()
def mean_of_tensors(states: Sequence[StateDict]) -> StateDict:
    """Return the means of tensors regardless of parametrizations, as needed in matching."""
    return by_name(states, _mean)


def _mean(name: str, tensors: list[Tensor]) -> Tensor:
    kept = unaveraged(name, tensors)
    if kept is not None:
        return kept
    return combine(tensors, shares((1.0,) * len(tensors)), output_dtype(tensor.dtype for tensor in tensors))
