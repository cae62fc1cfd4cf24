"""Merges in exact arithmetic, element by element, and the one rounding of what they give: slow, and without any doubt.

Numbers are ``Fraction``s, weights the float64 that they are; angles are found by mpmath with hundreds of bits. Nothing
here knows the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import mpmath
import torch
from torch import Tensor

Exact: TypeAlias = list[Fraction]

#: Bits of the significand, exponents of the least normal and the largest number.
FORMATS = {
    torch.float8_e5m2: (3, -14, 15),
    torch.float8_e4m3fn: (4, -6, 8),
    torch.bfloat16: (8, -126, 127),
    torch.float16: (11, -14, 15),
    torch.float32: (24, -126, 127),
    torch.float64: (53, -1022, 1023),
}

mpmath.mp.prec = 600


def fractions(tensor: Tensor) -> Exact:
    return [Fraction(value) for value in tensor.double().flatten().tolist()]


def step(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The distance between two numbers of a dtype around a value."""
    bits, least, _ = FORMATS[dtype]
    exponent = value.numerator.bit_length() - value.denominator.bit_length()  # 2^(e − 1) < |value| < 2^(e + 1)
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    return Fraction(2) ** (max(exponent, least) - bits + 1)


def nearest(value: Fraction, dtype: torch.dtype) -> float:
    """The value rounded once: to the nearest number, half-way to the even one; infinity beyond the last."""
    bits, _, most = FORMATS[dtype]
    unit = step(value, dtype)
    found = round(value / unit) * unit  # of a fraction, half to even
    last = (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** most
    if dtype == torch.float8_e4m3fn:
        last = Fraction(448)
    return float(found) if abs(found) <= last else math.copysign(math.inf, value)


def share_right(found: Tensor, exact: Sequence[Fraction]) -> float:
    """How many of the elements are the exact value rounded once."""
    pairs = zip(found.double().flatten().tolist(), exact, strict=True)
    return sum(value == nearest(one, found.dtype) for value, one in pairs) / max(1, len(exact))


def largest_error(found: Tensor, exact: Sequence[Fraction]) -> float:
    """The largest error, in units of the last place of the exact value; of one rounding it is 0.5."""
    pairs = zip(fractions(found), exact, strict=True)
    return max((float(abs(value - one) / step(one, found.dtype)) for value, one in pairs), default=0.0)


# Linear combinations


def combined(tensors: Sequence[Exact], coefficients: Sequence[Fraction]) -> Exact:
    columns = zip(*tensors, strict=True)
    return [sum((c * x for c, x in zip(coefficients, column, strict=True)), Fraction(0)) for column in columns]


def linear(models: Sequence[Exact], weights: Sequence[float], normalize: bool = True) -> Exact:
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact) if normalize else Fraction(1)
    return combined(models, [weight / total for weight in exact])


def task_arithmetic(
    models: Sequence[Exact], base: Exact, weights: Sequence[float], factor: float = 1.0, normalize: bool = False
) -> Exact:
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact) if normalize else Fraction(1)
    moves = [Fraction(factor) * weight / total for weight in exact]
    return combined([base, *models], [1 - sum(moves), *moves])


def line(a: Exact, b: Exact, position: float) -> Exact:
    return task_arithmetic([b], a, [position])


def slerp(base: Exact, model: Exact, t: float) -> Exact:
    start, end = arc(base, model, t, 0.9995)
    return combined([base, model], [start, end])


def arc(a: Exact, b: Exact, t: float, parallel: float) -> tuple[Fraction, Fraction]:
    """The coefficients of two vectors on their arc; on the straight line where they are all but parallel."""
    (aa, ab, bb), position = (dot(a, a), dot(a, b), dot(b, b)), rational(Fraction(t))
    cosine = ab / mpmath.sqrt(aa * bb) if aa * bb else mpmath.mpf(0)
    if abs(cosine) > parallel:
        return 1 - Fraction(t), Fraction(t)
    theta = mpmath.acos(cosine)
    parts = (mpmath.sin((1 - position) * theta) / mpmath.sin(theta), mpmath.sin(position * theta) / mpmath.sin(theta))
    return exactly(parts[0]), exactly(parts[1])


def dot(a: Exact, b: Exact) -> mpmath.mpf:
    return rational(sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0)))


def rational(value: Fraction) -> mpmath.mpf:
    return mpmath.mpf(value.numerator) / value.denominator


def exactly(value: mpmath.mpf) -> Fraction:
    sign, mantissa, exponent, _ = value._mpf_
    return Fraction(-1 if sign else 1) * mantissa * Fraction(2) ** exponent


# Consensus


def kept(deltas: Exact, density: float) -> list[bool]:
    """Which differences are among the largest; equal ones from the first position on."""
    count = len(deltas) if density >= 1 else max(1, math.floor(density * len(deltas)))
    places = sorted(range(len(deltas)), key=lambda place: -abs(deltas[place]))[:count]
    return [place in chosen for chosen in [set(places)] for place in range(len(deltas))]


def ties(
    models: Sequence[Exact],
    base: Exact,
    weights: Sequence[float],
    density: float = 1.0,
    factor: float = 1.0,
    normalize: bool = True,
) -> Exact:
    deltas = [[x - b for x, b in zip(model, base, strict=True)] for model in models]
    trimmed = [
        [delta if keep else Fraction(0) for delta, keep in zip(each, kept(each, density), strict=True)]
        for each in deltas
    ]
    return consensus(trimmed, base, weights, factor, normalize)


def consensus(deltas: Sequence[Exact], base: Exact, weights: Sequence[float], factor: float, normalize: bool) -> Exact:
    """The base and the differences that agree with the sign of their weighted sum; a sum of 0 counts as an increase."""
    exact, merged = [Fraction(weight) for weight in weights], []
    for origin, column in zip(base, zip(*deltas, strict=True), strict=True):
        terms = [weight * delta for weight, delta in zip(exact, column, strict=True)]
        increase = sum(terms) >= 0
        agree = [index for index, term in enumerate(terms) if term != 0 and (term > 0) == increase]
        divisor = sum((exact[index] for index in agree), Fraction(0)) if normalize else Fraction(1)
        total = sum((terms[index] for index in agree), Fraction(0))
        merged.append(origin + Fraction(factor) * total / (divisor or 1))
    return merged
