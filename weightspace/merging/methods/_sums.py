"""Sums over many elements that don't depend on the number of threads.

torch splits a sum with a single result among its threads, which affects its last bits. Here, runs of a fixed length are
summed by one thread each, and their results are added in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Number of elements summed in their own dtype, by torch's cascade.
_RUN = 4096

#: Sums of squares up to this may have lost terms below the range of float32.
_LOW = 1e-28


def row_sums(matrix: Tensor) -> Tensor:
    """Return the sums of the rows of a ``(rows, n)`` tensor, of shape ``(rows,)`` in float64."""
    whole = matrix.shape[1] // _RUN * _RUN
    runs = matrix[:, :whole].unflatten(1, (-1, _RUN)).sum(dim=2).sum(dim=1, dtype=torch.float64)
    return runs if whole == matrix.shape[1] else runs + matrix[:, whole:].sum(dim=1)


def total_square(tensor: Tensor) -> float:
    """Return the sum of the squares of all elements, in float64 if float32 would overflow or underflow."""
    found = total(tensor * tensor)
    return found if _LOW < found < math.inf else total(tensor.to(torch.float64).square())


def total(tensor: Tensor) -> float:
    """Return the sum of all elements, computed as in ``row_sums``."""
    flat = tensor.reshape(-1)
    whole = len(flat) // _RUN * _RUN
    found = flat[:whole].view(-1, _RUN).sum(dim=1).sum(dtype=torch.float64).item() if whole else 0.0
    return found + flat[whole:].sum().item() if whole < len(flat) else found
