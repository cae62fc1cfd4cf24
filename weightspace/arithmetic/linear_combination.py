r"""Linear combinations of tensors, :math:`\sum_i c_i x_i`: the exact value of every element, rounded once.

Float32 suffices for most combinations of bfloat16, and float64 for the others; a sample of the elements shows where
they don't: where terms cancel, or differ so much in size that small ones are lost. There, double words are used. A sum
that is midway between two numbers of the output except for the last digits of a weight (see ``coefficients``) is nudged
to its side far enough for the arithmetic to see it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.blocks import block_size, piece_size
from weightspace.arithmetic.coefficients import Coefficients
from weightspace.arithmetic.double_word import (
    move_midpoints,
    narrowed,
    narrowed_once,
    quotient,
    rounded_once,
    weighted_sum,
)
from weightspace.arithmetic.dtypes import significand_bits
from weightspace.arithmetic.nonfinite import is_finite, replace_nonfinite
from weightspace.arithmetic.precision_choice import PrecisionChoice, nudge

#: Number of elements combined by double words at a time.
_SMALL = 2**16

#: Up to this many elements are faster to combine one by one.
_FEW = 32

#: A result below this fraction of its terms is subject to cancellation.
_SMALL_SHARE = 2.0**-20

#: Dtypes that torch computes in float32.
_NARROW = (torch.float16, torch.bfloat16)

#: Sums and means of two numbers.
_OF_TWO = (((1, 1), 1), ((1, 1), 2))


def combine(tensors: Sequence[Tensor], coefficients: Coefficients, dtype: torch.dtype) -> Tensor:
    """Return ``Σ c_i x_i`` in a new tensor, with every element rounded once.

    Args:
        tensors: float or complex tensors of one shape, one per coefficient; those with coefficient 0 are not read.
        coefficients: ``c_i``.
        dtype: dtype of the result; complex if a tensor is.
    """
    if dtype.is_complex:
        parts = [torch.view_as_real(tensor.detach().to(dtype).resolve_conj()) for tensor in tensors]
        return torch.view_as_complex(combine(parts, coefficients, dtype.to_real()))
    out = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    combiner = LinearCombiner(coefficients, dtype)
    flat, flats = out.view(-1), [tensor.detach().reshape(-1) for tensor in tensors]
    for start in range(0, len(flat), combiner.block):
        stop = start + combiner.block
        combiner.into(flat[start:stop], _ranges(flats, start, stop))
    return out


def _ranges(tensors: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
    """Return a range of the elements of tensors, or the tensors themselves if it covers all."""
    return [tensor if len(tensor) <= stop and not start else tensor[start:stop] for tensor in tensors]


class LinearCombiner:
    """Combines tensors block by block in reused memory.

    Args:
        coefficients: coefficients of all tensors.
        dtype: dtype of the results, a real one.

    Attributes:
        block: number of elements of a block.
    """

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._used = coefficients.used
        self.block, self._piece = block_size(len(self._used)), piece_size(len(self._used))
        coefficients = self._coefficients = coefficients.without_zeros
        self._copies = coefficients.exact == (1,)
        self._of_two = coefficients.integers in _OF_TWO and not coefficients.deviating
        self._line = _line_order(coefficients)
        # Sums of −0.0 keep their sign, unless a factor, a nudge or a point on a line flips it.
        turns = coefficients.deviating or (self._line and coefficients.integers is None)
        self._keeps_zeros = min(coefficients.exact, default=0) > 0 and not turns
        self._judge = PrecisionChoice(coefficients, dtype)
        self._arithmetic: torch.dtype | None = None
        self._factors: Sequence[float] | None = None
        self._cancelling, self._small = False, 0.0
        self._rooms: dict[torch.dtype, list[Tensor]] = {}
        self._bits = None if self._keeps_zeros else room_for(self._piece, dtype)

    def _judge_block(self, used: Sequence[Tensor]) -> None:
        """Choose the arithmetic for a block."""
        coefficients = self._coefficients
        narrow = self.dtype.itemsize < 4 and all(tensor.itemsize < 4 for tensor in used)
        if self._of_two:
            # If one of two terms is negligible in their sum, the sum isn't near a midpoint.
            self._arithmetic = torch.float32 if narrow or self._are_singles(used) else torch.float64
            return
        self._arithmetic = None
        if self.dtype == torch.float64:
            return
        with np.errstate(all="ignore"):
            self._judge.look(used)
            # Float64 represents every sum of a few float16 numbers, so their order doesn't matter.
            exact = self.dtype == torch.float16 and coefficients.integers is not None and not coefficients.deviating
            single = narrow and not exact
            dtypes = (torch.float32, torch.float64)[0 if single else 1 :]
            self._arithmetic = next((dtype for dtype in dtypes if self._judge.suits(dtype)), None)
            if coefficients.deviating:
                self._small = _SMALL_SHARE * self._judge.size()
            if self._judge.moves:
                self._cancelling = self._judge.cancels()
            self._factors = self._plain_factors()

    def _plain_factors(self) -> Sequence[float] | None:
        """Return the coefficients of a plain sum that rounds correctly, or None if there are none."""
        coefficients, enlarging = self._coefficients, None
        if coefficients.integers is None or (coefficients.deviating and not self._judge.moves):
            return coefficients.values
        if not coefficients.deviating or self._cancelling:
            return None
        if self.dtype == torch.float32:
            enlarging = self._judge.enlarging()
        elif self._line and self._arithmetic == torch.float32:
            enlarging = self._judge.line_enlarging()
        return None if enlarging is None else coefficients.deviated(enlarging)

    def into(self, out: Tensor, tensors: Sequence[Tensor]) -> bool:
        """Combine one block.

        Args:
            out: receives the result, 1-D and contiguous; of ``block`` elements unless it is the last one.
            tensors: one per coefficient, of the size of ``out``; not modified.

        Returns:
            Whether the result contains neither NaN nor infinity.
        """
        used = [tensors[index] for index in self._used]
        if not used:
            out.zero_()
            return True
        if self._copies and used[0].dtype == self.dtype:
            out.copy_(used[0])
            return is_finite(out)
        self._judge_block(used)
        if self._arithmetic is not None:
            places = self._compute_pieces(out, used, self._arithmetic)
            if is_finite(out):
                self._mend_small(out, places, used)
                return True
        self._compute_exactly(out, used)
        whole = is_finite(out)
        if not whole:
            replace_nonfinite(out, used, self._coefficients.values)
        restore_negative_zeros(out, small_places(out, 0.0), used)
        return whole

    def _compute_pieces(self, out: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Combine in float32 or float64; return the positions of results that may have lost digits or their sign."""
        places = [torch.empty(0, dtype=torch.int64)]
        # From narrow tensors to a narrow one, lerp computes in float32 and rounds once.
        narrow = dtype == torch.float32 and all(tensor.dtype == self.dtype for tensor in tensors)
        factors = self._factors if self._line and narrow and self.dtype in _NARROW else None
        for start in range(0, len(out), self._piece):
            piece = out[start : start + self._piece]
            parts = _ranges(tensors, start, start + self._piece)
            if factors is not None:
                self._plain_sum(parts, factors, piece)
            elif self._of_two and self._are_singles(parts):
                self._compute_of_two(piece, parts)
            else:
                self._compute(piece, parts, dtype)
            if not self._keeps_zeros:
                places.append(small_places(piece, self._small, self._bits).add_(start))
        return torch.cat(places)

    def _mend_small(self, out: Tensor, places: Tensor, tensors: Sequence[Tensor]) -> None:
        """Recompute cancelling terms by double words, and restore the signs of zeros, in place."""
        if not self._coefficients.deviating or not len(places):
            restore_negative_zeros(out, places, tensors)
        elif len(places) <= _FEW:
            for place in places.tolist():
                out[place] = self._element([tensor[place].item() for tensor in tensors])
        else:
            mended = torch.empty(len(places), dtype=out.dtype, device=out.device)
            self._compute_exactly(mended, [tensor[places] for tensor in tensors])
            out[places] = mended
            restore_negative_zeros(out, places, tensors)

    def _element(self, values: Sequence[float]) -> float:
        """Return one element in float64 precision; a sum of only −0.0 is −0.0."""
        if not any(values):
            return -0.0 if all(math.copysign(1.0, value) < 0 for value in values) else 0.0
        integers, divisor = self._coefficients.integers or ((), 1)
        whole = math.fsum(map(operator.mul, integers, values)) / divisor  # of exact products
        return whole + math.fsum(map(operator.mul, map(float, self._coefficients.deviations), values))

    # --- In float32 or float64 ---

    def _compute(self, out: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Combine in one of the two dtypes."""
        *terms, spare = self._read(tensors, dtype)
        coefficients, narrow = self._coefficients, narrowed
        if self._factors is not None:
            total = self._plain_sum(terms, self._factors, terms[0])
        elif coefficients.integers is not None and not coefficients.deviating:
            total = _whole_sum(terms, *coefficients.integers, terms[0])
            narrow = narrowed if dtype == torch.float32 else narrowed_once
        else:
            total = self._nudged(terms, spare)
        out.copy_(total if self.dtype.itemsize >= total.itemsize / 2 else narrow(total, self.dtype))

    def _are_singles(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether a sum of two tensors is rounded once in float32: both are, and the result isn't wider."""
        return self.dtype.itemsize <= 4 and all(tensor.dtype == torch.float32 for tensor in tensors)

    def _compute_of_two(self, out: Tensor, tensors: Sequence[Tensor]) -> None:
        """Compute the sum or mean of two float32 tensors in float32; that of few elements in float64."""
        numerators, divisor = self._coefficients.integers or ((), 1)
        if self.dtype == torch.float32:
            _whole_sum(tensors, numerators, divisor, out)
            return
        total = _whole_sum(tensors, numerators, divisor, torch.empty_like(tensors[0]))
        first, second = tensors
        move_midpoints(
            total, lambda at: (first.index_select(0, at).double() + second.index_select(0, at)) / divisor, self.dtype
        )
        out.copy_(narrowed(total, self.dtype))

    def _read(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return the tensors in a dtype, and a spare row, in reused memory."""
        count = len(tensors[0])
        rows = self._rooms.get(dtype, [])
        if not rows or len(rows[0]) < count:
            size, device = (len(tensors) + 1, count), tensors[0].device
            rows = self._rooms[dtype] = list(torch.empty(size, dtype=dtype, device=device).unbind())
        rows = _ranges(rows, 0, count)
        for row, tensor in zip(rows, tensors, strict=False):
            row.copy_(_single(tensor) if dtype == torch.float64 else tensor)
        return rows

    def _nudged(self, terms: list[Tensor], spare: Tensor) -> Tensor:
        """Return the sum, nudged to the side of the deviations of the coefficients."""
        total, away, sign = self._total_and_away(terms, spare)
        size = sign * nudge(total.dtype, self.dtype)
        if self.dtype.itemsize < 4 and total.dtype == torch.float64:
            total, away = total.to(torch.float32), away.to(torch.float32)
        # If models are equal, deviations can cancel completely: an exact midpoint then stays one.
        return total.addcmul_(total.abs(), away.sign_(), value=-size)

    def _total_and_away(self, terms: list[Tensor], spare: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the sum, and a tensor and a sign whose product points away from the sum of the deviations."""
        coefficients = self._coefficients
        if self._cancelling and coefficients.integers is not None:
            total = _whole_sum(terms, *coefficients.integers, spare)
        else:
            total = self._plain_sum(terms, [float(simple) for simple in coefficients.simple or ()], spare)
        directions = {index: ratio for index, ratio in enumerate(coefficients.directions) if ratio}
        first = min(directions, key=lambda index: abs(abs(directions[index]) - 1))
        away = terms[first] if abs(directions[first]) == 1 else terms[first].mul_(abs(directions[first]))
        sign = math.copysign(1, directions.pop(first))
        for index, ratio in directions.items():
            away.add_(terms[index], alpha=sign * ratio)
        return total, away, -sign

    def _plain_sum(self, terms: Sequence[Tensor], values: Sequence[float], out: Tensor) -> Tensor:
        """Return ``Σ c_i x_i`` in ``out``, which may be the first term."""
        if self._line:
            near, far = self._line
            return torch.lerp(terms[near], terms[far], values[far], out=out)
        (first, factor), *others = [pair for pair in zip(terms, values, strict=True) if pair[1]]
        total = torch.mul(first, factor, out=out)
        for term, value in others:
            total.add_(term, alpha=value)
        return total

    # --- By double words ---

    def _compute_exactly(self, out: Tensor, tensors: Sequence[Tensor]) -> None:
        """Combine by double words."""
        numerators, divisor, exponent = self._coefficients.scaled
        bits = max(significand_bits(tensor.dtype) for tensor in tensors)
        for start in range(0, len(out), _SMALL):
            wide = [_single(part).to(torch.float64) for part in _ranges(tensors, start, start + _SMALL)]
            shift = _shift(wide) if bits == significand_bits(torch.float64) else 0
            value = weighted_sum([_scaled(tensor, shift) for tensor in wide], numerators, bits)
            if divisor != 1:
                value = quotient(value, divisor)
            high, low = (_scaled(part, exponent - shift) for part in value)
            out[start : start + _SMALL] = rounded_once((high, low), self.dtype)


def _whole_sum(terms: Sequence[Tensor], numerators: Sequence[int], divisor: int, out: Tensor) -> Tensor:
    """Return ``Σ p_i x_i / q`` in ``out``, which may be the first term: an exact sum, and one rounding."""
    total = terms[0] if numerators[0] == 1 and len(terms) > 1 else torch.mul(terms[0], numerators[0], out=out)
    for term, numerator in zip(terms[1:], numerators[1:], strict=True):
        total = torch.add(total, term, alpha=numerator, out=out)
    if divisor & (divisor - 1) == 0:
        return total.mul_(1 / divisor) if divisor > 1 else total
    return total.div_(divisor)


def _line_order(coefficients: Coefficients) -> tuple[int, int] | None:
    """Return the positions of the larger and the smaller of two coefficients that sum to 1, or None."""
    if len(coefficients.used) != 2 or not coefficients.affine:
        return None
    first, second = map(abs, coefficients.values)
    return (0, 1) if first >= second else (1, 0)


def _single(tensor: Tensor) -> Tensor:
    """Return narrow numbers in float32, which torch converts to float64 faster."""
    return tensor.to(torch.float32) if tensor.itemsize < 4 else tensor


def _shift(tensors: Sequence[Tensor]) -> int:
    """Return the power of two to multiply by so that no product overflows and no rounding error underflows."""
    largest = max(float(tensor.abs().max()) for tensor in tensors)
    if not math.isfinite(largest) or largest == 0:
        return 0
    exponent = math.frexp(largest)[1]
    return 960 - exponent if exponent > 960 else min(960 - exponent, 1000) if exponent < -600 else 0


def _scaled(tensor: Tensor, exponent: int) -> Tensor:
    """Multiply by a power of two, which may be outside float64's range."""
    while exponent:
        step = max(-1000, min(1000, exponent))
        tensor = tensor * 2.0**step
        exponent -= step
    return tensor


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NUMPY = {2: np.uint16, 4: np.uint32}


def room_for(count: int, dtype: torch.dtype) -> np.ndarray | None:
    """Return memory for ``small_places`` of that many elements, or None if it needs none."""
    number = _NUMPY.get(dtype.itemsize)
    return None if number is None else np.empty(count, number)


def small_places(out: Tensor, bound: float, room: np.ndarray | None = None) -> Tensor:
    """Return the positions of elements with at most a given magnitude.

    Args:
        out: 1-D and contiguous, of any float dtype.
        bound: the magnitude, at least 0.
        room: memory to work in, from ``room_for``, at least as long as ``out``.
    """
    number = _NUMPY.get(out.itemsize)
    if out.device.type != "cpu" or number is None or not len(out):
        return (_plain(out).abs() <= bound).nonzero()[:, 0]
    # Without the sign bit, the bits of floats sort like the numbers.
    numbers = out.view(_INTEGERS[out.itemsize]).numpy().view(number)
    bits = np.add(numbers, numbers, out=None if room is None else room[: len(out)])
    limit = _doubled_bits(bound, out.dtype)
    return torch.from_numpy(np.flatnonzero(bits <= limit)) if bits.min() <= limit else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=8)
def _doubled_bits(number: float, dtype: torch.dtype) -> int:
    """Return the bits of a non-negative number, without the sign bit."""
    return 2 * int(torch.tensor([number]).to(dtype).view(_INTEGERS[dtype.itemsize])[0])


def restore_negative_zeros(out: Tensor, places: Tensor, tensors: Sequence[Tensor]) -> None:
    """Replace 0.0 by −0.0, in place, where all tensors are −0.0.

    Args:
        out: 1-D and contiguous, of any float dtype.
        places: positions to check, which include all zeros.
        tensors: of the length of ``out``.
    """
    for tensor in (out, *tensors):
        if not len(places):
            return
        values = _plain(tensor[places])
        places = places[(values == 0) & (values.signbit() if tensor is not out else ~values.signbit())]
    out.view(_INTEGERS[out.itemsize])[places] = torch.iinfo(_INTEGERS[out.itemsize]).min


def _plain(values: Tensor) -> Tensor:
    """Return values in a dtype that torch can compare, which excludes 8-bit ones."""
    return values.to(torch.float32) if values.itemsize == 1 else values
