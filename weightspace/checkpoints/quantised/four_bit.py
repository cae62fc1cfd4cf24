"""Decoding of bytes that hold two 4-bit numbers, by a lookup table."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: The values of FP4 (E2M1) by code.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def e2m1(packed: Tensor) -> Tensor:
    """Return the FP4 numbers in bytes, low half first, as float32; the last axis is twice as long."""
    return looked_up(packed, _e2m1_pairs())


def pairs(table: Tensor, *, low_first: bool) -> Tensor:
    """Return the two values in each possible byte: 256 float32 pairs, viewed as int64 of shape ``(256,)``.

    Args:
        table: the values of the 16 codes, float32 of shape ``(16,)``.
        low_first: whether the lower half of a byte is the first number.
    """
    import torch

    low, high = table.repeat(16), table.repeat_interleave(16)
    return torch.stack((low, high) if low_first else (high, low), dim=1).contiguous().view(torch.int64).view(-1)


def looked_up(packed: Tensor, table: Tensor) -> Tensor:
    """Decode bytes to float32 by a table of ``pairs``; the last axis is twice as long."""
    import torch

    found = torch.index_select(table, 0, packed.reshape(-1).to(torch.int32))
    return found.view(torch.float32).view(*packed.shape[:-1], 2 * packed.shape[-1])


@cache
def _e2m1_pairs() -> Tensor:
    import torch

    return pairs(torch.tensor(E2M1, dtype=torch.float32), low_first=True)
