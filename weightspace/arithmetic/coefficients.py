r"""The coefficients of a linear combination, exactly: ratios of binary fractions, and the decimals that they stand for.

Weights such as 0.3 are near a fraction of few digits. For numbers of few bits they put many sums midway between two
numbers of the output, up to the difference of 0.3 as a float64 from 3/10, which then decides where the sum rounds to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

#: Denominators of simple fractions: for larger ones fewer than one sum in that many is midway between two numbers.
_DENOMINATOR = 4096

#: Ratios of deviations are made whole up to this.
_RATIO = 256

#: A coefficient stands for a simple fraction that is as near as this, relative to the largest coefficient.
_NEAR = Fraction(1, 2**48)


@dataclass(frozen=True)
class Coefficients:
    r"""The numbers :math:`c_i = n_i / d`.

    Attributes:
        numerators: ``n_i``, binary fractions.
        divisor: ``d``, a binary fraction, not 0.
    """

    numerators: tuple[Fraction, ...]
    divisor: Fraction = Fraction(1)

    @cached_property
    def exact(self) -> tuple[Fraction, ...]:
        """``c_i``."""
        return tuple(numerator / self.divisor for numerator in self.numerators)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """``c_i``, each rounded to float64."""
        return tuple(_as_float(coefficient) for coefficient in self.exact)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """Positions of the coefficients that are not 0."""
        return tuple(index for index, numerator in enumerate(self.numerators) if numerator)

    @cached_property
    def without_zeros(self) -> Coefficients:
        """Those that are not 0."""
        return Coefficients(tuple(self.numerators[index] for index in self.used), self.divisor)

    @cached_property
    def scaled(self) -> tuple[tuple[Fraction, ...], Fraction, int]:
        """Numerators and a divisor of a size near 1, and the exponent of the power of two that is missing."""
        numerators, divisor = self.numerators, self.divisor
        if self.integers is not None and not self.deviating:
            numerators, divisor = tuple(map(Fraction, self.integers[0])), Fraction(self.integers[1])
        above, below = _exponent(sum(map(abs, numerators), Fraction(0))), _exponent(divisor)
        two = Fraction(2)
        return tuple(numerator / two**above for numerator in numerators), divisor / two**below, above - below

    @cached_property
    def simple(self) -> tuple[Fraction, ...] | None:
        """The simple fractions that all of them stand for, or None."""
        near = _NEAR * max((abs(coefficient) for coefficient in self.exact), default=Fraction(0))
        simple = tuple(number.limit_denominator(_DENOMINATOR) for number in self.exact)
        fits = all(abs(number - fraction) <= near for number, fraction in zip(self.exact, simple, strict=True))
        small = all(abs(fraction.numerator) <= _DENOMINATOR for fraction in simple)
        return simple if fits and small else None

    @cached_property
    def integers(self) -> tuple[tuple[int, ...], int] | None:
        """Small whole numbers ``p_i`` and ``q``, the simple fractions being ``p_i / q``, or None."""
        if self.simple is None:
            return None
        divisor = math.lcm(*(fraction.denominator for fraction in self.simple))
        numerators = tuple(int(fraction * divisor) for fraction in self.simple)
        return (numerators, divisor) if divisor + sum(map(abs, numerators)) <= _DENOMINATOR else None

    @cached_property
    def deviations(self) -> tuple[Fraction, ...]:
        """How far they are from ``p_i / q``; all 0 where there are no such numbers."""
        simple = self.exact if self.integers is None or self.simple is None else self.simple
        return tuple(number - fraction for number, fraction in zip(self.exact, simple, strict=True))

    @cached_property
    def rows(self) -> np.ndarray:
        """The coefficients and their deviations, ``(2, N)`` in float64."""
        return np.array([self.values, [float(deviation) for deviation in self.deviations]])

    @cached_property
    def deviating(self) -> bool:
        """Whether there are such numbers, and some coefficient is not quite its own."""
        return any(self.deviations)

    @cached_property
    def affine(self) -> bool:
        """Whether they sum to 1."""
        return sum(self.numerators, Fraction(0)) == self.divisor

    @cached_property
    def directions(self) -> tuple[float, ...]:
        """Numbers in the ratios of the deviations: small whole ones where there are, else of 1 at most."""
        size = max(map(abs, self.deviations), default=Fraction(0)) or Fraction(1)
        ratios = [deviation / size for deviation in self.deviations]
        multiple = math.lcm(*(ratio.denominator for ratio in ratios)) if self.deviating else 1
        return tuple(float(ratio * multiple) if multiple <= _RATIO else float(ratio) for ratio in ratios)

    def deviated(self, factor: float) -> list[float]:
        """Return the coefficients as far from the simple fractions as ``factor`` times their deviations."""
        pairs = zip(self.values, self.deviations, strict=True)
        return [value + (factor - 1) * float(deviation) for value, deviation in pairs]


@lru_cache(maxsize=1024)
def ratios(numerators: tuple[float | Fraction, ...], divisor: float | Fraction = 1) -> Coefficients:
    """Return ``n_i / d`` of finite numbers that are taken as they are."""
    return Coefficients(tuple(Fraction(numerator) for numerator in numerators), Fraction(divisor))


@lru_cache(maxsize=1024)
def shares(weights: tuple[float | Fraction, ...]) -> Coefficients:
    """Return ``w_i / Σ w_i``; the weights must not sum to 0."""
    exact = tuple(Fraction(weight) for weight in weights)
    return Coefficients(exact, sum(exact, Fraction(0)))


def shifts(factors: Sequence[float | Fraction], divisor: float | Fraction = 1) -> Coefficients:
    r"""Return the coefficients of :math:`b + \sum_i f_i (x_i - b) / d`, that of ``b`` last."""
    return _shifts(tuple(factors), divisor)


@lru_cache(maxsize=1024)
def _shifts(factors: tuple[float | Fraction, ...], divisor: float | Fraction) -> Coefficients:
    exact, below = tuple(Fraction(factor) for factor in factors), Fraction(divisor)
    return Coefficients((*exact, below - sum(exact, Fraction(0))), below)


def simplest(number: float) -> Fraction:
    """Return the simple fraction that a computed number stands for, or the number itself.

    Unlike a weight, which is taken as it is, it differs from a simple fraction by the rounding of what it comes from.
    """
    simple = simple_or_none(number)
    return Fraction(number) if simple is None else simple


@lru_cache(maxsize=1024)
def simple_or_none(number: float) -> Fraction | None:
    """Return the simple fraction that a finite number stands for, or None."""
    exact = Fraction(number)
    simple = exact.limit_denominator(_DENOMINATOR)
    return simple if abs(exact - simple) <= _NEAR * abs(exact) else None


def _exponent(number: Fraction) -> int:
    """Return an ``e`` with ``2^(e − 1) < |number| < 2^(e + 1)``."""
    return number.numerator.bit_length() - number.denominator.bit_length()


def _as_float(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)
