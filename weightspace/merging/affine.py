r"""The one formula behind means and straight lines: an affine combination of tensors.

With coefficients that sum to ``t``, :math:`\sum_i c_i x_i = t\,x_p + \sum_i c_i (x_i - x_p)` for any ``p``.
The right-hand side returns equal inputs bit for bit, and a coefficient of 1 beside zeros returns that input.
The pivot ``p`` is the input of the largest coefficient: the line has the same exact ends both ways round.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def affine(tensors: Sequence[Tensor], coefficients: Sequence[float], total: float = 1.0) -> Tensor:
    """Return ``Σ c_i x_i``, of one shape with every input, in a new tensor.

    Args:
        tensors: float tensors of one shape and dtype; the arithmetic is in this dtype (see ``widened``).
        coefficients: one a tensor; a tensor with coefficient 0 isn't looked at, be it NaN or not.
        total: what the coefficients sum to, given so that their rounding doesn't scale the result.

    Source:
        derived; where ``x_i − x_p`` overflows or is ``∞ − ∞``, the plain sum ``Σ c_i x_i`` stands instead.
    """
    pivot = max(range(len(tensors)), key=lambda index: abs(coefficients[index]))
    origin = tensors[pivot]
    shift = torch.zeros_like(origin)
    for index, (tensor, coefficient) in enumerate(zip(tensors, coefficients, strict=True)):
        if index != pivot and coefficient != 0:
            shift.add_(tensor - origin, alpha=coefficient)
    start = origin if total == 1 else origin * total
    # Where nothing moves the input stays as it is: -0.0 + 0.0 would lose its sign.
    combined = torch.where(shift == 0, start, start + shift)
    finite = torch.isfinite(combined)
    return combined if bool(finite.all()) else torch.where(finite, combined, _plain(tensors, coefficients))


def output_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype of a combination: the common one, or the promotion of differing ones."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the dtype to compute in: that of the output, float32 at least.

    A tensor that is in this dtype already is returned itself, not a copy.
    """
    dtype = output_dtype(tensors)
    # float8 has no promotion rules of its own; float32 holds every value of it.
    wide = torch.float32 if dtype.itemsize == 1 else torch.promote_types(dtype, torch.float32)
    return [tensor.detach().to(wide) for tensor in tensors]


def _plain(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return the sum of the products, term by term."""
    result = torch.zeros_like(tensors[0])
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient != 0:
            result.add_(tensor, alpha=coefficient)
    return result
