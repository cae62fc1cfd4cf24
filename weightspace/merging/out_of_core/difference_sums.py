"""Sums over one tensor of how its models differ from the base or the first of them, read chunk by chunk in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightspace.merging.methods._registry import CHUNK
from weightspace.merging.methods._tensor_stack import TensorReader, TensorStack


def difference_sums(stack: TensorStack, columns: Sequence[int], models: int, threshold: float) -> dict[str, Any]:
    """Return the sums of a tensor.

    Args:
        stack: the models and the base; without one the first model is the reference.
        columns: the place of each compared model among all ``models``.
        models: how many there are.
        threshold: differences above it times the root mean square of the reference count.

    Returns:
        ``elements``; ``reference``, the sum of its squares; per model ``present`` and ``above``, the number of elements
        that count; ``products``, the inner products of the differences, ``(models, models)``; ``conflicts``, the number
        of elements that count with both signs.

    Raises:
        WeightspaceError: a tensor holds NaN or infinity.
    """
    stack = replace(stack, granularity="elements")
    squares = _squares(stack.sources[0] if stack.base is None else stack.base, stack.numel)
    bound = threshold * math.sqrt(squares / stack.numel) if stack.numel else 0.0
    products = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    above, conflicts = torch.zeros(len(columns), dtype=torch.int64), 0
    for chunk in stack.chunks(dtype=torch.float64):
        deltas = chunk.models - chunk.base if chunk.base is not None else chunk.models[1:] - chunk.models[0]
        products += deltas @ deltas.T
        counted = deltas.abs() > bound
        above += counted.sum(dim=1)
        conflicts += int(_both_signs(deltas, counted).sum())
    return {
        "elements": stack.numel,
        "reference": squares,
        "conflicts": conflicts,
        "present": [index in columns for index in range(models)],
        "above": _placed(above, columns, models).tolist(),
        "products": _placed(_placed(products, columns, models).T.contiguous(), columns, models).tolist(),
    }


def _squares(reader: TensorReader, numel: int) -> float:
    """Return the sum of a tensor's squares."""
    pieces = (reader.read(start, min(start + CHUNK, numel)) for start in range(0, numel, CHUNK))
    return math.fsum(float(piece.double().square().sum()) for piece in pieces)


def _both_signs(deltas: Tensor, counted: Tensor) -> Tensor:
    """Return where differences that count have both signs."""
    return ((deltas > 0) & counted).any(dim=0) & ((deltas < 0) & counted).any(dim=0)


def _placed(values: Tensor, columns: Sequence[int], models: int) -> Tensor:
    """Return rows at their places among those of all models."""
    placed = values.new_zeros(models, *values.shape[1:])
    placed[list(columns)] = values
    return placed
