"""Linear interpolation between two networks: their merge with the weights ``1 − λ`` and ``λ``.

Position 0 is exactly ``a`` and 1 exactly ``b``; positions outside [0, 1] extrapolate. Under weight norm the weights
themselves are interpolated; running variances never become negative (see ``arithmetic.running_variances``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.arguments import checked
from weightspace.arithmetic.coefficients import shifts
from weightspace.arithmetic.dtypes import output_dtype
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.linear_combination import combine
from weightspace.arithmetic.parametrizations import combined, combined_tensors
from weightspace.arithmetic.running_variances import not_negative
from weightspace.arithmetic.tied_tensors import by_name
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.errors import WeightspaceError
from weightspace.lora.factor_files import check_is_model


@checked
@torch.no_grad()
def interpolate(a: StateDict, b: StateDict, position: float) -> StateDict:
    """Return the network at ``position`` on the straight line from ``a`` to ``b``.

    Args:
        a: tensors at position 0.
        b: tensors at position 1, with the same names and shapes.
        position: any finite real number, dimensionless.

    Returns:
        New tensors in the dtype of the inputs (promoted where they differ): the exact values, rounded once. Tensors
        tied in both stay tied. At positions other than 0 and 1, integers must agree, counters take the larger value,
        and spectral norm's vectors are those of the interpolated weight.

    Raises:
        CheckpointError: names or shapes differ.
        WeightspaceError: the position isn't finite, or integer tensors differ.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> ws.interpolate({"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}, 0.25)
        {'w': tensor([0.2500, 2.5000])}
    """
    check_compatible(a, b)
    check_is_model(a, "a")
    if not math.isfinite(position):
        raise WeightspaceError(f"Expected a finite position on the line, found {position}.")
    if position in (0, 1):
        return by_name([a, b], lambda name, tensors: _end(tensors[0], tensors[1], position))
    return combined([a, b], lambda name, tensors: _between(name, tensors, position))


@torch.no_grad()
def line(a: StateDict, b: StateDict, position: float) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of ``interpolate`` by name, one at a time, without checking that ``a`` and ``b`` fit."""
    if position in (0, 1):
        yield from ((name, _end(tensor, b[name], position)) for name, tensor in a.items())
    else:
        yield from combined_tensors([a, b], lambda name, tensors: _between(name, tensors, position))


def _end(a: Tensor, b: Tensor, position: float) -> Tensor:
    """Return a tensor of the model at an endpoint."""
    return (b if position else a).detach().to(output_dtype((a.dtype, b.dtype)), copy=True)


def _between(name: str, ends: list[Tensor], position: float) -> Tensor:
    """Return a tensor at a position that is not an endpoint."""
    kept = unaveraged(name, ends)
    if kept is not None:
        return kept
    moved = combine(ends[::-1], shifts((position,)), output_dtype(end.dtype for end in ends))
    return not_negative(name, moved, lambda: ends)
