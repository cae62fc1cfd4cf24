"""A method on one stack: its first passes, then the merged elements a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightspace.merging.methods import Method
from weightspace.merging.methods.loading import load_function
from weightspace.merging.rounding import needs_float64, rounded
from weightspace.merging.stack import Stack


def merged_pieces(
    method: Method, stack: Stack, weights: Sequence[float], arguments: Mapping[str, Any], dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Yield the merged tensor in order: the index of a first element, and 1-D elements, rounded once.

    Args:
        method: a row of the table.
        stack: the models' tensors, read in pieces of the method's grain.
        weights: one finite number a model.
        arguments: as ``method.arguments`` returns them, and what its survey adds.
        dtype: of the output.

    Raises:
        WeightspaceError: the stack or the result holds NaN or infinity (``stack.finite``), or as the method.
    """
    if not stack.numel:
        return
    formula = load_function(method)(stack, weights, **arguments)
    for piece in stack.pieces():
        values = formula(piece)
        if needs_float64(values, piece.base, dtype):
            exact = replace(stack, dtype=torch.float64)
            values = formula(exact.read(piece.start, piece.start + piece.tensors[0].numel()))
        yield piece.start, rounded(stack, values.reshape(-1), dtype)
