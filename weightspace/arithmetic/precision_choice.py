"""The precision that suffices for a linear combination, judged from a sample of its elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import Coefficients
from weightspace.arithmetic.dtypes import least_exponent, significand_bits

#: Approximate number of elements sampled from a chunk, and the length of the sampled runs.
_SAMPLE, _RUN = 1024, 16

#: Permitted fraction of wrongly rounded elements in a pessimistic estimate, several times the actual one.
_TOLERATED = 3e-3

#: Approximate fraction of sums that are nearly midway between two numbers, where their error decides.
_HALF_WAY = 0.02

#: A sum below this fraction of its terms is rounding error.
_NONE = 2.0**-40

#: A sum counts as midway within this fraction of the spacing of numbers: float64 is finer, so it is no coincidence.
_BESIDE = 2.0**-32

#: Relative precision of a point on a line in float32: half of its last digit.
_SEEN = 2.0**-24

#: Permitted fraction of sums moved across a midpoint by that.
_MOVED = 4e-4

_TINY = float(np.finfo(np.float64).tiny)


def nudge(dtype: torch.dtype, out: torch.dtype) -> float:
    """Return how far to nudge sums that are nearly midway between two numbers.

    Args:
        dtype: dtype of the arithmetic, whose error is smaller.
        out: dtype of the results, in which the nudge rarely shows.

    Returns:
        A fraction of their size.
    """
    if dtype == torch.float32:
        return 2.0**-22 if out == torch.float16 else 2.0**-20
    # Narrow numbers are converted from float32, in which the nudge must show.
    return 2.0**-43 if out == torch.float32 else 2.0**-23


class PrecisionChoice:
    """Decides for successive chunks whether float32 or float64 suffices.

    Args:
        coefficients: non-zero coefficients of all tensors.
        out: dtype of the results.

    Attributes:
        moves: whether deviations of the coefficients decide the rounding of any sampled sum. If they do so too rarely
            to be sampled, half of these sums are right anyway.
    """

    moves = False

    def __init__(self, coefficients: Coefficients, out: torch.dtype) -> None:
        self._deviating = coefficients.deviating
        self._integers = None if self._deviating else coefficients.integers
        self._rows = coefficients.rows
        self._sizes = np.abs(self._rows[0])
        self._out = out

    def look(self, tensors: Sequence[Tensor]) -> None:
        """Sample elements from all over some tensors, 1-D and of one length."""
        count = len(tensors[0])
        runs, run = (_SAMPLE // _RUN, _RUN) if count > 2 * _SAMPLE else (1, count)
        apart = count // runs
        self._values = np.empty((len(tensors), runs * run))
        for row, tensor in zip(torch.from_numpy(self._values), tensors, strict=True):
            row.view(runs, run).copy_(tensor[: runs * apart].view(runs, apart)[:, :run])
        self._bits = max(significand_bits(tensor.dtype) for tensor in tensors)
        self._sums = np.abs(self._rows @ self._values)
        self._magnitudes = np.abs(self._values)
        self.moves = self._deviating and (self._out == torch.float32 or self._finds_half_way())

    def suits(self, dtype: torch.dtype) -> bool:
        """Return whether few enough elements are rounded wrongly when combined in float32 or float64."""
        digits = significand_bits(dtype)
        if self._integers is not None:
            # Sums of numbers of few bits have no error; beyond that, one that must not be all of a term.
            room = digits - self._bits - sum(map(abs, self._integers[0])).bit_length()
            spread = self._spread(2.0**room)
            if spread is None:
                return True
            wrong = np.where(spread < 2.0**room, 0.0, self._doubtful(digits))
            wrong[spread > 2.0 ** (digits - 4)] = 1.0
        else:
            wrong = self._doubtful(digits)
            size, bound = nudge(dtype, self._out), 0.25 / nudge(dtype, self._out)
            if self.moves:
                # If sums aren't moved by more than their error, midpoints are rounded wrongly.
                error = 2.0 ** (significand_bits(self._out) + 1) * size
                wrong = np.maximum(wrong, np.where(wrong > error, _HALF_WAY, 0.0))
            spread = self._spread(bound) if self.moves else None
            if spread is not None:
                wrong[spread > bound] = 1.0  # a term is less than what sums are moved by
        return bool(wrong.sum() <= _TOLERATED * len(wrong))

    def enlarging(self) -> float:
        """Return the factor by which to enlarge the coefficients' deviations for float64 to see them."""
        size, deviation = self._sums.sum(axis=1)
        wanted = nudge(torch.float64, torch.float32)
        return min(max(wanted * float(size / deviation), 1.0), 2.0**40) if deviation > 0 else 1.0

    def line_enlarging(self) -> float | None:
        """Return the factor by which to enlarge the deviations of a line for float32 to see them, or None.

        None means that they are so small in some sums that in others they would move too many across a midpoint.
        """
        sums, deviations = self._sums
        deviation = np.abs(self._rows[1]).max()
        digits = significand_bits(self._out)
        for shift in range(digits - 2, 0, -2):  # of the weight, in float32's half digits
            enlarging = _SEEN * 2.0**shift / deviation
            moves = np.ldexp(enlarging * deviations, digits - self._exponents)
            unseen = enlarging * deviations[self._half_way] < _SEEN * sums[self._half_way]
            if moves.clip(max=1).mean() <= _MOVED:
                return float(enlarging) if np.count_nonzero(unseen) <= 1 + _MOVED * len(sums) else None
        return None

    def size(self) -> float:
        """Return the mean of the sums of the terms' magnitudes."""
        return float((self._sizes @ self._magnitudes).mean())

    def cancels(self) -> bool:
        """Return whether deviations of the coefficients cancel in elements that aren't all equal.

        If models are equal, a sum can be exactly midway between two numbers.
        """
        equal = (self._values == self._values[0]).all(axis=0)
        none = self._sums[1] <= _NONE * (np.abs(self._rows[1]) @ self._magnitudes)
        return bool((~equal & none).any())

    def _finds_half_way(self) -> bool:
        """Find the sums that would be midway between two numbers of the output without deviations."""
        self._exponents = np.maximum(np.frexp(self._sums[0])[1], least_exponent(self._out) + 1)
        steps = np.ldexp(self._sums[0], significand_bits(self._out) - self._exponents)
        self._half_way = np.abs(steps - np.floor(steps) - 0.5) < _BESIDE
        return bool(self._half_way.any())

    def _doubtful(self, digits: int) -> np.ndarray:
        """Return the probability that each element is rounded wrongly, given the cancellation of its terms."""
        sizes = self._sizes @ self._magnitudes
        sizes *= 2.0 ** (significand_bits(self._out) + 2 - digits)
        sizes /= self._sums[0] + _TINY
        return np.minimum(sizes, 1.0, out=sizes)

    def _spread(self, bound: float) -> np.ndarray | None:
        """Return the ratio of the largest to the smallest non-zero term, or None if all are below the bound."""
        sizes = self._magnitudes
        if sizes.max() < bound * sizes.min():
            return None
        smallest = np.where(sizes == 0, np.inf, sizes).min(axis=0)
        return (sizes.max(axis=0) + _TINY) / smallest
