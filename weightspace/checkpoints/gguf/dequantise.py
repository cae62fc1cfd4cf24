"""The values of quantised GGUF blocks in float32, bit for bit those of llama.cpp's ``gguf`` package.

A block holds scales in float16 and packed integers ``q``. Its values are ``d · q``, or ``d · q`` plus or minus a
minimum; in the K types, a block of 256 has 8 or 16 parts with integer scales of their own.

Source: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/quants.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

#: Numbers of the IQ4 types by their codes.
_UNEVEN = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)


def dequantise(blocks: Tensor, name: str) -> Tensor:
    """Return the values of quantised blocks.

    Args:
        blocks: bytes, uint8, of shape ``(blocks, bytes of a block)``.
        name: the name of the type, such as ``Q4_K``.

    Returns:
        float32, of shape ``(blocks, elements of a block)``.
    """
    return _DECODERS[name](blocks)


def _q8_0(blocks: Tensor) -> Tensor:
    scale, codes = blocks.split((2, 32), dim=1)
    return codes.view(torch.int8).float() * _halves(scale)


def _q4_0(blocks: Tensor) -> Tensor:
    scale, codes = blocks.split((2, 16), dim=1)
    return _halves(scale) * (_bits(codes, 4) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    scale, minimum, codes = blocks.split((2, 2, 16), dim=1)
    return _halves(scale) * _bits(codes, 4) + _halves(minimum)


def _q5_0(blocks: Tensor) -> Tensor:
    scale, high, codes = blocks.split((2, 4, 16), dim=1)
    return _halves(scale) * (_bits(codes, 4) + _fifth_bits(high) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    scale, minimum, high, codes = blocks.split((2, 2, 4, 16), dim=1)
    return _halves(scale) * (_bits(codes, 4) + _fifth_bits(high)) + _halves(minimum)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, codes, scale, minimum = blocks.split((16, 64, 2, 2), dim=1)
    parts = _halves(scale) * (scales & 15), _halves(minimum) * (scales >> 4)
    return _scaled(_bits(codes.unflatten(1, (2, 32)), 2), *parts)


def _q3_k(blocks: Tensor) -> Tensor:
    high, codes, scales, scale = blocks.split((32, 64, 12, 2), dim=1)
    low, above = scales.split((8, 4), dim=1)
    sixths = _bits(low, 4) + 16 * _bits(above, 2)
    missing = 4 * (1 - _bits(high, 1))
    return _scaled(_bits(codes.unflatten(1, (2, 32)), 2) - missing, _halves(scale) * (sixths - 32))


def _q4_k(blocks: Tensor) -> Tensor:
    scale, minimum, packed, codes = blocks.split((2, 2, 12, 128), dim=1)
    scales, minima = _packed_scales(packed)
    return _scaled(_bits(codes.unflatten(1, (4, 32)), 4), _halves(scale) * scales, _halves(minimum) * minima)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, minimum, packed, high, codes = blocks.split((2, 2, 12, 32, 128), dim=1)
    scales, minima = _packed_scales(packed)
    numbers = _bits(codes.unflatten(1, (4, 32)), 4) + 16 * _bits(high, 1)
    return _scaled(numbers, _halves(scale) * scales, _halves(minimum) * minima)


def _q6_k(blocks: Tensor) -> Tensor:
    codes, high, scales, scale = blocks.split((128, 64, 16, 2), dim=1)
    numbers = _bits(codes.unflatten(1, (2, 64)), 4) + 16 * _bits(high.unflatten(1, (2, 32)), 2)
    return _scaled(numbers - 32, _halves(scale) * scales.view(torch.int8))


def _iq4_nl(blocks: Tensor) -> Tensor:
    scale, codes = blocks.split((2, 16), dim=1)
    return _halves(scale) * _uneven(_bits(codes, 4))


def _iq4_xs(blocks: Tensor) -> Tensor:
    scale, high, low, codes = blocks.split((2, 2, 4, 128), dim=1)
    scales = _bits(low[..., None], 4) + 16 * _bits(high[..., None], 2)
    return _scaled(_uneven(_bits(codes.unflatten(1, (8, 16)), 4)), _halves(scale) * (scales - 32))


def _uneven(codes: Tensor) -> Tensor:
    """Return the numbers, unevenly spaced, that codes of four bits stand for in the IQ4 types."""
    return torch.tensor(_UNEVEN)[codes.long()]


def _halves(pairs: Tensor) -> Tensor:
    """Return float16 numbers, each in two bytes, as float32."""
    return pairs.contiguous().view(torch.float16).float()


def _bits(codes: Tensor, width: int) -> Tensor:
    """Return numbers of some bits, packed along the last axis from the lowest bits up, as float32.

    All lowest bits come first, then the next ones; further axes are joined to the last.
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
    return ((codes[..., None, :] >> shifts) & (2**width - 1)).flatten(1).float()


def _fifth_bits(high: Tensor) -> Tensor:
    """Return 16 for each bit that is set, the lowest of the first byte first, as float32."""
    return 16 * ((high[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1).float()


def _packed_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 8 scales and the 8 minima of a block, of 6 bits each."""
    scales, minima, both = packed.split(4, dim=1)
    return (
        torch.cat([scales & 63, (both & 15) | ((scales >> 2) & 48)], dim=1),
        torch.cat([minima & 63, (both >> 4) | ((minima >> 2) & 48)], dim=1),
    )


def _scaled(numbers: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """Return numbers times the scales of their parts, minus the minima of these."""
    parts = numbers.unflatten(1, (scales.shape[1], -1))
    values = scales[..., None] * parts
    return (values if minima is None else values - minima[..., None]).flatten(1)


_DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
