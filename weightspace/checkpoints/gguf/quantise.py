"""Quantisation of float32 elements to Q8_0 blocks, with the bytes of llama.cpp's ``gguf`` package.

The scale of a block of 32 is its largest absolute value over 127, stored in float16; an element is divided by the
unrounded scale and rounded to nearest, ties away from zero.

Source: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/quants.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.errors import WeightspaceError

#: Elements of a block, and the largest number that stands for one.
BLOCK, _LARGEST = 32, 127


def quantise_q8_0(elements: Tensor, name: str) -> Tensor:
    """Return the bytes of blocks, uint8, 1-D.

    Args:
        elements: float32, 1-D, a multiple of 32.
        name: name of the tensor, for errors.

    Raises:
        WeightspaceError: an element is so large that the scale of its block is no finite float16.
    """
    blocks = elements.view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / _LARGEST
    halves = scales.half()
    if not torch.isfinite(halves).all():
        raise WeightspaceError(
            f"{name!r} cannot be written in Q8_0: its largest element, {float(elements.abs().max()):g}, needs a scale "
            "beyond float16. Leave quantise out."
        )
    inverse = 1 / scales
    scaled = blocks * torch.where(inverse.isinf(), 0, inverse)  # blocks of zeros, or of numbers that become zeros
    whole = scaled.abs().floor()
    whole += (2 * (scaled.abs() - whole)).floor()
    numbers = (scaled.sign() * whole).to(torch.int8)
    return torch.cat([halves.view(torch.uint8), numbers.view(torch.uint8)], dim=1).view(-1)
