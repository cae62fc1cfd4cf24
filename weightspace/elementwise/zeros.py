"""The sign of zero, which sums lose: of copies of −0.0 the mean is −0.0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def restore_negative_zeros(out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Make 0.0 to −0.0, in place, where all tensors are −0.0.

    Args:
        out: 1-D and contiguous, of any float dtype.
        tensors: of its length.
    """
    bits = out.view(_INTEGERS[out.itemsize])
    places = _zeros(bits)
    for tensor in tensors:
        if not len(places):
            return
        values = tensor[places]
        values = values.to(torch.float32) if values.itemsize == 1 else values
        places = places[(values == 0) & values.signbit()]
    bits[places] = torch.iinfo(bits.dtype).min


def _zeros(bits: Tensor) -> Tensor:
    """Return the positions of the zeros among integers."""
    if bits.device.type != "cpu":
        return (bits == 0).nonzero()[:, 0]
    numbers = bits.numpy()  # numpy counts four times as fast
    if np.count_nonzero(numbers) == len(numbers):
        return torch.empty(0, dtype=torch.int64)
    return torch.from_numpy(np.flatnonzero(numbers == 0))
