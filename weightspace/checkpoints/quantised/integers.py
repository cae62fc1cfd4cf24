"""Integers of 4 or 8 bits packed into 32-bit words, the lowest bits first."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.quantised.four_bit import looked_up, pairs

if TYPE_CHECKING:
    from torch import Tensor

#: Bit widths that are read, and dtypes of scales.
BITS = (4, 8)
SCALES = ("F16", "BF16", "F32")


def is_grouped_by(size: Any, inputs: int, groups: int) -> bool:
    """Return whether inputs form groups of a declared size; -1 stands for one group, None for any number."""
    if type(size) is not int or size <= 0:
        return size is None or groups == 1
    return groups == -(-inputs // size)


def numbers(words: Tensor, bits: int) -> Tensor:
    """Return the unsigned integers in words as float32, with a new last axis of ``32 / bits``.

    Args:
        words: int32, contiguous, of any shape.
        bits: bits of an integer, 4 or 8.
    """
    import torch

    parts = words.contiguous().view(torch.uint8).view(*words.shape, 4)
    return looked_up(parts, _table()) if bits == 4 else parts.to(torch.float32)


@cache
def _table() -> Tensor:
    import torch

    return pairs(torch.arange(16, dtype=torch.float32), low_first=True)
