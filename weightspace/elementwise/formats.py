"""The float formats of torch: their bits and exponents."""

from __future__ import annotations

import torch

#: Bits of the significands, and the exponents of the least normal numbers.
_FORMATS = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float8_e4m3fn: (4, -6),
    torch.float8_e4m3fnuz: (4, -7),
    torch.float8_e5m2: (3, -14),
    torch.float8_e5m2fnuz: (3, -15),
}


def significand_bits(dtype: torch.dtype) -> int:
    """Return the bits of the significands of a real float dtype."""
    return _FORMATS[dtype][0]


def least_exponent(dtype: torch.dtype) -> int:
    """Return the exponent of the least normal number of a real float dtype."""
    return _FORMATS[dtype][1]
