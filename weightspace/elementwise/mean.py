"""The plain mean of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.measure import is_inexact
from weightspace.elementwise.coefficients import shares
from weightspace.elementwise.combination import combine
from weightspace.elementwise.counting import agreed
from weightspace.elementwise.precision import output_dtype
from weightspace.elementwise.tying import by_name


@torch.no_grad()
def mean(states: Sequence[StateDict]) -> StateDict:
    """Return the mean of networks; copies have the copy as their mean, bit for bit.

    Args:
        states: one or more state dicts with the same names and shapes.

    Returns:
        New tensors in the dtype of the inputs (promoted where they differ): the exact mean, rounded once, whatever the
        order of the networks. Integer tensors are those that all agree on, of BatchNorm's counters the largest.
        Tensors tied in every network stay tied.

    Raises:
        WeightspaceError: integer tensors differ.
    """
    equal = shares((1.0,) * len(states))

    def averaged(name: str, tensors: list[Tensor]) -> Tensor:
        if not is_inexact(tensors[0]):
            return agreed(name, tensors)
        return combine(tensors, equal, output_dtype(tensor.dtype for tensor in tensors))

    return by_name(states, averaged)
