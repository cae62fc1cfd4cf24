"""The straight line between two networks, which is the merge of two with the weights ``1 − λ`` and ``λ``.

Position 0 is ``a`` and 1 is ``b``, both exactly; beyond them the line goes on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.measure import is_inexact
from weightspace.elementwise.coefficients import shifts
from weightspace.elementwise.combination import combine
from weightspace.elementwise.counting import agreed
from weightspace.elementwise.precision import output_dtype
from weightspace.elementwise.tying import by_name
from weightspace.errors import WeightspaceError


def interpolate(a: StateDict, b: StateDict, position: float) -> StateDict:
    """Return the network at ``position`` on the straight line from ``a`` to ``b``.

    Args:
        a: tensors at position 0.
        b: tensors at position 1, with the same names and shapes.
        position: any finite real number, without unit.

    Returns:
        New tensors in the dtype of the inputs (the promoted one where they differ): the exact values, rounded once.
        Tensors that are tied in both stay tied.

    Raises:
        CheckpointError: names or shapes differ.
        WeightspaceError: the position isn't finite, or integer tensors differ.
    """
    check_compatible(a, b)
    if not math.isfinite(position):
        raise WeightspaceError(f"A position on the line is a finite number, found {position}.")
    return by_name([a, b], lambda name, tensors: between(name, tensors[0], tensors[1], position))


@torch.no_grad()
def between(name: str, a: Tensor, b: Tensor, position: float) -> Tensor:
    """Return one tensor of the line: ``interpolate`` for callers that go tensor by tensor.

    Integer tensors are those of ``a`` or ``b`` at the ends, and what the two agree on elsewhere.
    """
    if is_inexact(a):
        return combine([b, a], shifts((position,)), output_dtype((a.dtype, b.dtype)))
    if position in (0, 1):
        return (b if position else a).detach().to(output_dtype((a.dtype, b.dtype)), copy=True)
    return agreed(name, [a, b])
