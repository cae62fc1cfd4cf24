r"""Sums of masked differences from a base, elementwise in double-word arithmetic, for cases that need exact rounding.

.. math:: b + \lambda\, \frac{\sum_{i \in A} f_i (x_i - b)}{\sum_{i \in A} w_i}

with :math:`A` the models whose difference is kept at an element, or those among them that agree with the sign of
:math:`\sum_i f_i (x_i - b)`; the division is only done with ``normalize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import simplest
from weightspace.arithmetic.double_word import DoubleWord, quotient_of, rounded_once, weighted_sum

#: From models ``(N, n)``, their base and the positions of the elements to which differences are kept, bools ``(N, n)``.
Kept: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


#: Sums of the weights of all subsets are made for so many models; a vote below this share of its terms is rounding.
_FEW, _CLOSE = 8, 2.0**-40


@dataclass(frozen=True)
class MaskedSum:
    """A masked sum.

    Attributes:
        kept: function that returns which differences are kept.
        factors: ``f_i``.
        weights: ``w_i``.
        lambda_: ``λ``.
        normalize: whether to divide; a sum of 0 counts as 1.
        elect: whether to use only differences that agree in sign.
    """

    kept: Kept
    factors: Sequence[float]
    weights: Sequence[float]
    lambda_: float
    normalize: bool
    elect: bool = True

    @cached_property
    def finite(self) -> bool:
        """Whether float64 can represent all of these numbers and their products."""
        return all(math.isfinite(self.lambda_ * number) for number in (1.0, *self.factors, *self.weights))

    @cached_property
    def deviating(self) -> bool:
        """Whether a number deviates slightly from a simple fraction, which decides the rounding at midpoints."""
        numbers = (*self.factors, *self.weights, self.lambda_)
        return any(simplest(number) != Fraction(number) for number in numbers)

    @cached_property
    def _votes(self) -> tuple[Fraction, ...]:
        """``f_i``."""
        return tuple(Fraction(factor) for factor in self.factors)

    @cached_property
    def _shares(self) -> tuple[Fraction, ...]:
        """``w_i``."""
        return tuple(Fraction(weight) for weight in self.weights)

    @cached_property
    def _moves(self) -> tuple[Fraction, ...]:
        """``λ f_i``."""
        return tuple(Fraction(self.lambda_) * factor for factor in self._votes)

    def __call__(self, models: Tensor, base: Tensor, positions: Tensor, dtype: torch.dtype, bits: int) -> Tensor:
        """Return elements of the result, rounded once.

        Args:
            models: ``(N, n)`` in float64.
            base: ``(n,)`` in float64.
            positions: positions of the elements in the tensor.
            dtype: dtype of the result.
            bits: maximum significand bits of models and base.
        """
        taken = self.kept(models, base, positions) & (models != base)
        if self.elect:
            taken &= self._agreeing(taken, models, base, bits)
        value = self._divided(taken.to(torch.float64), models, base, bits)
        return torch.where(taken.any(dim=0), rounded_once(value, dtype), base.to(dtype))

    def _divided(self, masks: Tensor, models: Tensor, base: Tensor, bits: int) -> DoubleWord:
        """Compute ``b + λ Σ f_i (x_i − b) / Σ w_i`` over kept terms, as ``(Σ w_i b + λ Σ f_i (x_i − b)) / Σ w_i``."""
        back = [-move for move in self._moves]
        if not self.normalize:
            terms = [*(masks * models), *(masks * base), base]
            return weighted_sum(terms, [*self._moves, *back, Fraction(1)], bits)
        high, low = self._divisor(masks)
        undivided = (high == 0).to(torch.float64)
        rests = [share - move for share, move in zip(self._shares, self._moves, strict=True)]
        terms, weights = [*(masks * models)], [*self._moves]
        if any(rests):
            terms, weights = [*terms, *(masks * (1 - undivided) * base)], [*weights, *rests]
        if min(self._shares) <= 0:  # otherwise no sum of kept weights is 0
            terms, weights = [*terms, *(masks * undivided * base), undivided * base], [*weights, *back, Fraction(1)]
        return quotient_of(weighted_sum(terms, weights, bits), (high + undivided, low))

    def _divisor(self, masks: Tensor) -> DoubleWord:
        """Return the sum of the kept weights."""
        if len(masks) > _FEW:
            return weighted_sum(list(masks), self._shares, 1)
        place = (masks * 2.0 ** torch.arange(len(masks), dtype=torch.float64).view(-1, 1)).sum(dim=0).to(torch.int64)
        high, low = self._sums
        return high[place], low[place]

    @cached_property
    def _sums(self) -> DoubleWord:
        """The sums of the weights of all subsets, indexed by bit mask."""
        sums = [Fraction(0)]
        for share in self._shares:
            sums += [total + share for total in sums]
        highs = [float(total) for total in sums]
        lows = [float(total - Fraction(high)) for total, high in zip(sums, highs, strict=True)]
        return torch.tensor(highs, dtype=torch.float64), torch.tensor(lows, dtype=torch.float64)

    def _agreeing(self, kept: Tensor, models: Tensor, base: Tensor, bits: int) -> Tensor:
        """Return which differences have the elected sign: that of their sum, or positive if it is 0."""
        factors = torch.tensor(self.factors, dtype=torch.float64).view(-1, 1)
        moves = (base - models).mul_(factors).mul_(kept)
        total = moves.sum(dim=0)
        close = (total.abs() < moves.abs().sum(dim=0) * _CLOSE).nonzero()[:, 0]
        if len(close):
            masks, own = kept[:, close].to(torch.float64), base[close]
            weights = [*self._votes, *(-vote for vote in self._votes)]
            high, low = weighted_sum([*(masks * own), *(masks * models[:, close])], weights, bits)
            total[close] = torch.where(high == 0, low, high)
        sign = torch.where(total > 0, 1.0, -1.0)
        return torch.where(base > models, factors, -factors).sign() == sign
