"""Double-word arithmetic: weighted sums and quotients with twice the precision of float64, rounded once.

A double word is a pair of float64 tensors ``(high, low)`` whose sum is the value, where ``high`` is the nearest
float64. Each operation must round separately, since its error is computed from the rounded result: none may be fused
with the next one, except after an exact product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.dtypes import significand_bits

_Number = TypeVar("_Number", float, Tensor)

#: ``(high, low)``, two float64 tensors of one shape.
DoubleWord: TypeAlias = tuple[Tensor, Tensor]

#: Dekker's constant, which splits 53 bits into 26 and 27.
_SPLITTER = 2.0**27 + 1

#: Approximate number of elements in a sample.
_SAMPLED = 2048

#: Number of significant bits of a weight that are used; bits of float64.
_WEIGHT_BITS, _BITS = 112, 53


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[Fraction], bits: int) -> DoubleWord:
    """Return ``Σ w_i x_i`` to 106 bits of its largest term.

    Args:
        tensors: at least one float64 tensor, all of one shape.
        weights: binary fractions, one per tensor.
        bits: maximum number of significand bits of the tensors.

    Source:
        Ogita, Rump and Oishi 2005, https://doi.org/10.1137/030601818, algorithm 5.3 (Dot2).
    """
    high, low, product, error, spare = torch.empty(5, *tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    high.zero_()
    low.zero_()
    for tensor, weight in zip(tensors, weights, strict=True):
        for part, exact in _parts(weight, bits):
            if exact:
                torch.mul(tensor, part, out=product)
            else:
                low.add_(_multiply(tensor, part, product, error, spare))
            torch.add(high, product, out=spare)
            low.add_(_lost(high, product, spare, error))
            high, spare = spare, high
    return _normalised(high, low)


def two_sum(a: Tensor, b: Tensor) -> DoubleWord:
    """Return ``a + b`` without any error."""
    total = a + b
    return total, _lost(a.clone(), b.clone(), total, torch.empty_like(a))


def _lost(a: Tensor, b: Tensor, total: Tensor, spare: Tensor) -> Tensor:
    """Return the rounding error of ``a + b`` to ``total``, in the memory of ``a``; ``b`` is overwritten.

    Source:
        Knuth 1969, The Art of Computer Programming, volume 2, section 4.2.2, theorem B.
    """
    torch.sub(total, a, out=spare)
    b.sub_(spare)
    torch.sub(total, spare, out=spare)
    return a.sub_(spare).add_(b)


def _multiply(tensor: Tensor, factor: float, product: Tensor, error: Tensor, spare: Tensor) -> Tensor:
    """Compute ``tensor · factor`` into ``product``, and return its rounding error in ``error``.

    Source:
        Dekker 1971, https://doi.org/10.1007/BF01397083.
    """
    upper_factor, lower_factor = _halves(factor)
    torch.mul(tensor, -factor, out=product)
    upper = torch.mul(tensor, _SPLITTER, out=spare)
    upper.sub_(torch.sub(upper, tensor, out=error))
    torch.add(product, upper, alpha=upper_factor, out=error).add_(upper, alpha=lower_factor)
    lower = torch.sub(tensor, upper, out=spare)
    product.neg_()
    return error.add_(lower, alpha=upper_factor).add_(lower, alpha=lower_factor)


def _halves(number: _Number) -> tuple[_Number, _Number]:
    """Split numbers into halves of 26 bits, so that their products are exact."""
    large = number * _SPLITTER
    upper = large - (large - number)
    return upper, number - upper


@lru_cache(maxsize=1024)
def _parts(weight: Fraction, bits: int) -> tuple[tuple[float, bool], ...]:
    """Split a binary fraction into summands, each with a flag for whether its products with ``bits`` bits are exact."""
    # If the parts are short enough, no product rounds.
    length = _BITS - bits if bits <= _BITS // 2 else _BITS
    parts: list[tuple[float, bool]] = []
    first, rest = 0, weight
    while rest:
        exponent = rest.numerator.bit_length() - rest.denominator.bit_length()
        first = first or exponent
        if first - exponent > _WEIGHT_BITS:
            break
        part = math.ldexp(round(rest * Fraction(2) ** (length - 1 - exponent)), exponent - length + 1)
        if not part:  # below the range of float64
            break
        parts.append((part, bits + length <= _BITS or _length(part) == 1))
        rest -= Fraction(part)
    return tuple(parts)


def _length(number: float) -> int:
    """Return the number of significand bits that a number uses."""
    numerator = abs(number.as_integer_ratio()[0])
    return (numerator // (numerator & -numerator)).bit_length()


def quotient(dividend: DoubleWord, divisor: Fraction) -> DoubleWord:
    """Return a quotient to about 104 bits; one with few bits is exact.

    Args:
        dividend: any double word; it is overwritten.
        divisor: a binary fraction, not 0.

    Source:
        derived: long division, whose remainder is exact if the first digit is the whole quotient.
    """
    first = float(divisor)
    high, low = dividend
    digit, product, error, spare = torch.empty(4, *high.shape, dtype=torch.float64, device=high.device)
    torch.div(high, first, out=digit)
    error = _multiply(digit, first, product, error, spare)
    remainder = high.sub_(product).sub_(error).add_(low.sub_(digit, alpha=float(divisor - Fraction(first))))
    return _normalised(digit, remainder.div_(first))


def quotient_of(dividend: DoubleWord, divisor: DoubleWord) -> DoubleWord:
    """Return the quotients of double words, as in ``quotient``; neither is overwritten."""
    digit = dividend[0] / divisor[0]
    product, spare = torch.empty_like(digit), torch.empty_like(digit)
    error = _multiply_each(digit, divisor[0], product, spare)
    remainder = (dividend[0] - product).sub_(error).add_(dividend[1] - digit * divisor[1])
    return _normalised(digit, remainder.div_(divisor[0]))


def _multiply_each(a: Tensor, b: Tensor, product: Tensor, spare: Tensor) -> Tensor:
    """Compute the products of tensors into ``product``, and return their rounding errors."""
    (upper_a, lower_a), (upper_b, lower_b) = _halves(a), _halves(b)
    torch.mul(a, b, out=product)
    error = torch.mul(upper_a, upper_b, out=spare).sub_(product)
    return error.add_(upper_a * lower_b).add_(lower_a * upper_b).add_(lower_a * lower_b)


def _normalised(high: Tensor, low: Tensor) -> DoubleWord:
    """Return the pair with the same sum whose first number is nearest to it; ``|low|`` is below ``|high|``."""
    total = high + low
    return total, low.sub_(torch.sub(total, high, out=high))


def rounded_once(value: DoubleWord, dtype: torch.dtype) -> Tensor:
    """Return a double word in a float dtype, rounded to nearest, ties to even.

    For a narrow dtype, every step but the last rounds to odd, so that the last one is correctly rounded.

    Source:
        Boldo and Melquiond 2008, https://doi.org/10.1109/TC.2007.70819.
    """
    high, low = value
    if dtype == torch.float64:
        return high
    odd = _to_odd(high, low)
    single = odd.to(torch.float32)
    if dtype == torch.float32:
        return single
    return narrowed(_to_odd(single, odd - single.to(torch.float64)), dtype)


def _to_odd(number: Tensor, rest: Tensor) -> Tensor:
    """Return numbers whose last bit is set if they are inexact.

    Args:
        number: the nearest numbers in their dtype, float32 or float64.
        rest: the remainder of the value, in float64.
    """
    bits = number.clone().view(torch.int64 if number.dtype == torch.float64 else torch.int32)
    outward = (rest > 0) == (number > 0)
    step = torch.where(outward, 1, -1).to(bits.dtype)
    bits += torch.where((rest != 0) & (number != 0) & (bits & 1 == 0), step, 0).to(bits.dtype)
    return bits.view(number.dtype)


def narrowed_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 numbers in a dtype of less than 32 bits, rounded to nearest once, unlike ``narrowed``."""
    flat = values.reshape(-1)
    single = flat.to(torch.float32)
    move_midpoints(single, lambda places: flat.index_select(0, places), dtype)
    return narrowed(single.view(values.shape), dtype)


def move_midpoints(single: Tensor, exact: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Move float32 numbers such that they can be rounded to a narrower dtype as if they had not been rounded, in place.

    Rounding to float32 first only matters where it gives a number midway between two of the dtype; there, it is moved
    back towards the value. If a sample has no short number that was rounded, they are rare, and left as they are.

    Args:
        single: 1-D, contiguous; the values rounded to nearest.
        exact: returns the values at some positions, in float64.
        dtype: the dtype.
    """
    unused = 23 - significand_bits(dtype)  # bits that are 0 in numbers of the dtype and in midpoints
    step = len(single) // _SAMPLED
    if step and len(single) > _SAMPLED:
        places = _ending_in(0, unused, single[::step]).mul_(step)
        if not _differ(exact(places), single[places]).any():
            return
    # The same for the exponent range of float32; smaller ranges have midpoints that end in more zeros.
    ending, count = (2**unused, unused + 1) if dtype == torch.bfloat16 else (0, unused)
    places = _ending_in(ending, count, single)
    values, near = exact(places), single.index_select(0, places)
    towards = torch.where(values > near, torch.inf, -torch.inf).to(torch.float32)
    single.index_copy_(0, places, torch.where(_differ(values, near), torch.nextafter(near, towards), near))


def _differ(values: Tensor, near: Tensor) -> Tensor:
    return (near.to(torch.float64) != values) & ~values.isnan()


def _ending_in(ending: int, count: int, single: Tensor) -> Tensor:
    """Return the positions of float32 numbers whose last ``count`` bits are ``ending``."""
    bits = single.view(torch.int32)
    if bits.device.type != "cpu":
        return (bits & (2**count - 1) == ending).nonzero()[:, 0]
    # numpy is faster: several times in comparisons, and if few are found.
    return torch.from_numpy(np.flatnonzero(bits.numpy() & np.int32(2**count - 1) == ending))


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 or float64 numbers in another dtype, via float32.

    Values out of range for float8_e4m3fn become NaN; torch would saturate 500 and infinity to 448.
    """
    single = values.to(torch.float32)
    if dtype.itemsize > 1 or dtype == torch.float8_e5m2:
        return single.to(dtype)
    limits = torch.finfo(dtype)
    half_step = math.ldexp(limits.eps, math.frexp(limits.max)[1] - 2)
    return torch.where(single.abs() > limits.max + half_step, torch.nan, single).to(dtype)
