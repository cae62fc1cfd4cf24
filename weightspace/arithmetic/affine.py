r"""Affine combinations of tensors, the formula behind means and straight lines.

With coefficients that sum to 1, :math:`\sum_i c_i x_i = x_p + \sum_i c_i (x_i - x_p)` for any ``p``.
The right-hand side returns equal inputs bit for bit, and with a coefficient of 1 next to zeros it returns that input.
The pivot ``p`` is the input with the largest coefficient, so a line has the same exact endpoints in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def affine(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return ``Σ c_i x_i``, with the shape of every input, in a new tensor.

    Args:
        tensors: float tensors of one shape and dtype; the arithmetic is in this dtype (see ``precision``).
        coefficients: one per tensor, with the sum 1; a tensor with coefficient 0 is ignored, even if it is NaN.

    Source:
        derived; if ``x_i − x_p`` overflows or is ``∞ − ∞``, the plain sum ``Σ c_i x_i`` is used instead.
    """
    combined = _about_pivot(tensors, coefficients)
    if math.isfinite(combined.abs().sum().item() if combined.is_complex() else combined.sum().item()):
        return combined
    finite = torch.isfinite(combined)
    return combined if bool(finite.all()) else torch.where(finite, combined, _plain(tensors, coefficients))


def _about_pivot(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return ``x_p + Σ c_i (x_i − x_p)``, computed as ``x_p − Σ |c_i| (±(x_p − x_i))``.

    Equal tensors differ by +0.0 in either order, and ``x − (+0.0)`` is ``x`` for both zeros, unlike ``x + 0.0``.
    """
    pivot = max(range(len(tensors)), key=lambda index: abs(coefficients[index]))
    origin = tensors[pivot]
    others = [index for index in range(len(tensors)) if index != pivot and coefficients[index] != 0]
    if not others:
        return origin.clone()
    factors = [coefficients[index] for index in others]
    moves = (  # one at a time, to bound memory
        origin - tensors[index] if coefficients[index] > 0 else tensors[index] - origin for index in others
    )
    first = next(moves)
    if len(others) == 1:
        return torch.sub(origin, first, alpha=abs(factors[0]), out=None if first.requires_grad else first)
    shift = first.mul_(abs(factors[0]))
    for move, factor in zip(moves, factors[1:], strict=True):
        shift.add_(move, alpha=abs(factor))
    return origin - shift


def _plain(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return the sum of the products, term by term."""
    result = torch.zeros_like(tensors[0])
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient != 0:
            result.add_(tensor, alpha=coefficient)
    return result
