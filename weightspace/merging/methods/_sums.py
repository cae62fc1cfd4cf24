"""Sums over many elements that are the same on any number of threads.

torch splits a sum that has one result among its threads, and its last bits depend on how. Runs of a fixed length have a
result each, which one thread finds; these are added in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Elements that are summed in their own dtype, by torch's cascade.
_RUN = 4096

#: Sums of squares up to this may have lost some that lie below the range of float32.
_LOW = 1e-28


def row_sums(matrix: Tensor) -> Tensor:
    """Return the sums of the rows of a ``(rows, n)`` tensor, of shape ``(rows,)`` in float64."""
    whole = matrix.shape[1] // _RUN * _RUN
    runs = matrix[:, :whole].unflatten(1, (-1, _RUN)).sum(dim=2).sum(dim=1, dtype=torch.float64)
    return runs if whole == matrix.shape[1] else runs + matrix[:, whole:].sum(dim=1)


def total_square(tensor: Tensor) -> float:
    """Return the sum of the squares of all elements, in float64 where float32 has no room for them."""
    found = total(tensor * tensor)
    return found if _LOW < found < math.inf else total(tensor.to(torch.float64).square())


def total(tensor: Tensor) -> float:
    """Return the sum of all elements, as ``row_sums`` finds it."""
    flat = tensor.reshape(-1)
    whole = len(flat) // _RUN * _RUN
    found = flat[:whole].view(-1, _RUN).sum(dim=1).sum(dtype=torch.float64).item() if whole else 0.0
    return found + flat[whole:].sum().item() if whole < len(flat) else found
