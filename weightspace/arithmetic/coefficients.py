r"""Exact coefficients of linear combinations: ratios of binary fractions, and the decimals they stand for.

Weights such as 0.3 are close to a fraction of few digits. For numbers of few bits, they put many sums midway between
two numbers of the output, up to the difference between 0.3 as a float64 and 3/10, which then decides the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

#: Denominators of simple fractions: for larger ones, fewer than one sum in that many is midway between two numbers.
_DENOMINATOR = 4096

#: Ratios of deviations are scaled to integers up to this.
_RATIO = 256

#: Maximum distance between a coefficient and the simple fraction it stands for, relative to the largest coefficient.
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
        """The ``c_i``, each rounded to float64."""
        return tuple(_as_float(coefficient) for coefficient in self.exact)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """Positions of the non-zero coefficients."""
        return tuple(index for index, numerator in enumerate(self.numerators) if numerator)

    @cached_property
    def without_zeros(self) -> Coefficients:
        """The non-zero coefficients."""
        return Coefficients(tuple(self.numerators[index] for index in self.used), self.divisor)

    @cached_property
    def scaled(self) -> tuple[tuple[Fraction, ...], Fraction, int]:
        """Numerators and divisor scaled to about 1, and the exponent of the compensating power of two."""
        numerators, divisor = self.numerators, self.divisor
        if self.integers is not None and not self.deviating:
            numerators, divisor = tuple(map(Fraction, self.integers[0])), Fraction(self.integers[1])
        above, below = _exponent(sum(map(abs, numerators), Fraction(0))), _exponent(divisor)
        two = Fraction(2)
        return tuple(numerator / two**above for numerator in numerators), divisor / two**below, above - below

    @cached_property
    def simple(self) -> tuple[Fraction, ...] | None:
        """The simple fractions that all coefficients stand for, or None."""
        near = _NEAR * max((abs(coefficient) for coefficient in self.exact), default=Fraction(0))
        simple = tuple(number.limit_denominator(_DENOMINATOR) for number in self.exact)
        fits = all(abs(number - fraction) <= near for number, fraction in zip(self.exact, simple, strict=True))
        small = all(abs(fraction.numerator) <= _DENOMINATOR for fraction in simple)
        return simple if fits and small else None

    @cached_property
    def integers(self) -> tuple[tuple[int, ...], int] | None:
        """Small integers ``p_i`` and ``q`` such that the simple fractions are ``p_i / q``, or None."""
        if self.simple is None:
            return None
        divisor = math.lcm(*(fraction.denominator for fraction in self.simple))
        numerators = tuple(int(fraction * divisor) for fraction in self.simple)
        return (numerators, divisor) if divisor + sum(map(abs, numerators)) <= _DENOMINATOR else None

    @cached_property
    def deviations(self) -> tuple[Fraction, ...]:
        """The deviations from ``p_i / q``; all 0 if there are no such integers."""
        simple = self.exact if self.integers is None or self.simple is None else self.simple
        return tuple(number - fraction for number, fraction in zip(self.exact, simple, strict=True))

    @cached_property
    def rows(self) -> np.ndarray:
        """The coefficients and their deviations, ``(2, N)`` in float64."""
        return np.array([self.values, [float(deviation) for deviation in self.deviations]])

    @cached_property
    def deviating(self) -> bool:
        """Whether the integers exist and some coefficient deviates from its fraction."""
        return any(self.deviations)

    @cached_property
    def affine(self) -> bool:
        """Whether the coefficients sum to 1."""
        return sum(self.numerators, Fraction(0)) == self.divisor

    @cached_property
    def directions(self) -> tuple[float, ...]:
        """Numbers in the ratio of the deviations: small integers if possible, otherwise at most 1."""
        size = max(map(abs, self.deviations), default=Fraction(0)) or Fraction(1)
        ratios = [deviation / size for deviation in self.deviations]
        multiple = math.lcm(*(ratio.denominator for ratio in ratios)) if self.deviating else 1
        return tuple(float(ratio * multiple) if multiple <= _RATIO else float(ratio) for ratio in ratios)

    def deviated(self, factor: float) -> list[float]:
        """Return coefficients that deviate from the simple fractions by ``factor`` times the deviations."""
        pairs = zip(self.values, self.deviations, strict=True)
        return [value + (factor - 1) * float(deviation) for value, deviation in pairs]


@lru_cache(maxsize=1024)
def ratios(numbers: tuple[float | Fraction, ...]) -> Coefficients:
    """Return finite numbers as coefficients, taken literally."""
    return Coefficients(tuple(Fraction(number) for number in numbers), Fraction(1))


@lru_cache(maxsize=1024)
def shares(weights: tuple[float | Fraction, ...]) -> Coefficients:
    """Return ``w_i / Σ w_i``; the weights must not sum to 0."""
    exact = tuple(Fraction(weight) for weight in weights)
    return Coefficients(exact, sum(exact, Fraction(0)))


def shifts(factors: Sequence[float | Fraction], divisor: float | Fraction = 1) -> Coefficients:
    r"""Return the coefficients of :math:`b + \sum_i f_i (x_i - b) / d`, with that of ``b`` last."""
    return _shifts(tuple(factors), divisor)


@lru_cache(maxsize=1024)
def _shifts(factors: tuple[float | Fraction, ...], divisor: float | Fraction) -> Coefficients:
    exact, below = tuple(Fraction(factor) for factor in factors), Fraction(divisor)
    return Coefficients((*exact, below - sum(exact, Fraction(0))), below)


def simplest(number: float) -> Fraction:
    """Return the simple fraction that a computed number stands for, or the number itself.

    Unlike a weight, which is taken literally, it differs from the fraction by the rounding of its computation.
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
