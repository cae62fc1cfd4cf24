"""Results near zero: what terms leave that cancel, and the sign of zero, which sums lose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NUMPY = {2: np.uint16, 4: np.uint32}


def room_for(count: int, dtype: torch.dtype) -> np.ndarray | None:
    """Return memory for ``small_places`` of so many elements, or None where it needs none."""
    number = _NUMPY.get(dtype.itemsize)
    return None if number is None else np.empty(count, number)


def small_places(out: Tensor, bound: float, room: np.ndarray | None = None) -> Tensor:
    """Return the positions of elements of at most some size.

    Args:
        out: 1-D and contiguous, of any float dtype.
        bound: the size, 0 or more.
        room: memory to work in, from ``room_for``, as long as ``out`` at least.
    """
    number = _NUMPY.get(out.itemsize)
    if out.device.type != "cpu" or number is None or not len(out):
        return (_plain(out).abs() <= bound).nonzero()[:, 0]
    # Without their sign the bits of numbers sort as the numbers do.
    numbers = out.view(_INTEGERS[out.itemsize]).numpy().view(number)
    bits = np.add(numbers, numbers, out=None if room is None else room[: len(out)])
    limit = _doubled_bits(bound, out.dtype)
    return torch.from_numpy(np.flatnonzero(bits <= limit)) if bits.min() <= limit else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=8)
def _doubled_bits(number: float, dtype: torch.dtype) -> int:
    """Return the bits of a number of 0 or more, without their sign."""
    return 2 * int(torch.tensor([number]).to(dtype).view(_INTEGERS[dtype.itemsize])[0])


def restore_negative_zeros(out: Tensor, places: Tensor, tensors: Sequence[Tensor]) -> None:
    """Make 0.0 to −0.0, in place, where all tensors are −0.0.

    Args:
        out: 1-D and contiguous, of any float dtype.
        places: where to look: all zeros are among them.
        tensors: of the length of ``out``.
    """
    for tensor in (out, *tensors):
        if not len(places):
            return
        values = _plain(tensor[places])
        places = places[(values == 0) & (values.signbit() if tensor is not out else ~values.signbit())]
    out.view(_INTEGERS[out.itemsize])[places] = torch.iinfo(_INTEGERS[out.itemsize]).min


def _plain(values: Tensor) -> Tensor:
    """Return values in a dtype that torch compares: it doesn't those of 8 bits."""
    return values.to(torch.float32) if values.itemsize == 1 else values
