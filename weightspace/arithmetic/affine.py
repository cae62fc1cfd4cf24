r"""Affine combinations of tensors, the formula behind means and straight lines.

With coefficients that sum to ``t``, :math:`\sum_i c_i x_i = t\,x_p + \sum_i c_i (x_i - x_p)` for any ``p``.
The right-hand side returns equal inputs bit for bit, and with a coefficient of 1 next to zeros it returns that input.
The pivot ``p`` is the input with the largest coefficient, so a line has the same exact endpoints in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def affine(tensors: Sequence[Tensor], coefficients: Sequence[float], total: float = 1.0) -> Tensor:
    """Return ``Σ c_i x_i``, with the shape of every input, in a new tensor.

    Args:
        tensors: float tensors of one shape and dtype; the arithmetic is in this dtype (see ``precision``).
        coefficients: one per tensor; a tensor with coefficient 0 is ignored, even if it is NaN.
        total: the exact sum of the coefficients, so that their rounding doesn't scale the result.

    Source:
        derived; if ``x_i − x_p`` overflows or is ``∞ − ∞``, the plain sum ``Σ c_i x_i`` is used instead.
    """
    combined = combination(tensors, coefficients, total)
    if math.isfinite(combined.abs().sum().item() if combined.is_complex() else combined.sum().item()):
        return combined
    finite = torch.isfinite(combined)
    return combined if bool(finite.all()) else torch.where(finite, combined, _plain(tensors, coefficients))


def combination(tensors: Sequence[Tensor], coefficients: Sequence[float], total: float = 1.0) -> Tensor:
    """Return the same for callers that check the finiteness of the result themselves."""
    pivot = max(range(len(tensors)), key=lambda index: abs(coefficients[index]))
    origin = tensors[pivot]
    others = [index for index in range(len(tensors)) if index != pivot and coefficients[index] != 0]
    start = origin if total == 1 else origin * total
    return _shifted(start, origin, [tensors[i] for i in others], [coefficients[i] for i in others])


def shifted(origin: Tensor, tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return ``b + Σ c_i (x_i − b)`` in a new tensor; bit-identical to ``b`` where nothing differs from it.

    Args:
        origin: ``b``.
        tensors: ``x_i``, of the same shape and dtype as ``b``.
        coefficients: one per tensor; a tensor with coefficient 0 is ignored.
    """
    used = [(tensor, factor) for tensor, factor in zip(tensors, coefficients, strict=True) if factor != 0]
    return _shifted(origin, origin, [tensor for tensor, _ in used], [factor for _, factor in used])


def _shifted(start: Tensor, origin: Tensor, tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Return ``start + Σ c_i (x_i − origin)``, computed as ``start − Σ |c_i| (±(origin − x_i))``.

    Equal tensors differ by +0.0 in either order, and ``x − (+0.0)`` is ``x`` for both zeros, unlike ``x + 0.0``.
    """
    if not tensors:
        return start.clone()
    moves = (  # one at a time, to bound memory
        origin - tensor if factor > 0 else tensor - origin for tensor, factor in zip(tensors, factors, strict=True)
    )
    first = next(moves)
    if len(tensors) == 1:
        return torch.sub(start, first, alpha=abs(factors[0]), out=None if first.requires_grad else first)
    shift = first.mul_(abs(factors[0]))
    for move, factor in zip(moves, factors[1:], strict=True):
        shift.add_(move, alpha=abs(factor))
    return start - shift


def _plain(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return the sum of the products, term by term."""
    result = torch.zeros_like(tensors[0])
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        if coefficient != 0:
            result.add_(tensor, alpha=coefficient)
    return result
