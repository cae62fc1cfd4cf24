"""The one rounding of a merge, to the dtype of the output, and where faster arithmetic is too coarse for it.

Weights such as 0.3 put results exactly half-way between two numbers of bfloat16 or float16, at which the smallest error
decides. Mostly float32 is exact there; where the differences are as large as the weights of the network it is not, and
then many results lie beside a half-way point by an error of their last bits. Models that cancel their base, as pruned
ones do, leave nothing but such errors. Both show in the results themselves.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weightspace.elementwise.double_word import narrowed
from weightspace.elementwise.formats import significand_bits

#: Narrow dtype -> bits of float32 that it lacks.
_LACKING = {torch.bfloat16: 16, torch.float16: 13}

#: A result is beside a half-way point within so many units in the last place of float32.
_BESIDE = 4

#: Elements of a piece that are looked at, from all over it.
_SAMPLE = 2**11

#: A result below this share of the base is what cancellation left.
_CANCELLED = 2.0**-18

#: So many times what chance puts beside half-way points is no chance; so few are not worth it.
_TIMES, _FEW = 6, 2

#: The error of a sum of differences from a base, relative to the size of both, at most.
_ERROR = {torch.float32: 2.0**-21, torch.float64: 2.0**-49}

#: What is taken for the error where the base is of the size of the results.
_DOUBTFUL = {torch.float32: 2.0**-19, torch.float64: 2.0**-44}

#: Dtypes of values and results -> bits that the second one lacks, the range of their exponents being the same or more.
_BEYOND = {(torch.float32, torch.bfloat16): 16, (torch.float64, torch.float32): 29}

#: About how often results are all but half-way between two numbers, and their error decides.
_HALF_WAY = 0.02

#: The share of elements that may round to the wrong side by a pessimistic estimate, several times what comes out.
_TOLERATED = 3e-3


def needs_float64(values: Tensor, base: Tensor | None, dtype: torch.dtype) -> bool:
    """Return whether the errors of float32 would be seen in more of the results than chance makes them.

    Args:
        values: results, in the dtype that they were computed in.
        base: what the differences were taken from, of their shape, or None.
        dtype: of the output.
    """
    if dtype not in _LACKING or values.dtype != torch.float32:
        return False
    step = values.numel() // _SAMPLE + 1
    sample = values.reshape(-1)[::step].contiguous().numpy()
    if base is not None:
        bound = np.abs(base.reshape(-1)[::step].numpy()) * np.float32(_CANCELLED)
        if np.count_nonzero((np.abs(sample) < bound) & (sample != 0)) > _FEW:
            return True
    return _many_beside_half_way(sample.view(np.uint32), _LACKING[dtype])


def _many_beside_half_way(sample: np.ndarray, lacking: int) -> bool:
    """Return whether more numbers lie just beside half-way points than chance puts there, by their bits."""
    # What the dtype lacks, moved to the top, so that the half-way point is 2^31; shifted to stand at _BESIDE above 0.
    place = np.left_shift(sample, 32 - lacking)
    place += np.uint32(2**31 + (_BESIDE << (32 - lacking)) & 2**32 - 1)
    near = np.count_nonzero(place <= np.uint32(2 * _BESIDE << (32 - lacking)))
    exact = np.count_nonzero(place == np.uint32(_BESIDE << (32 - lacking)))
    return bool(near - exact > max(_FEW, _TIMES * len(sample) * 2 * _BESIDE / 2**lacking))


def loses(results: Tensor, models: Tensor, base: Tensor, computed: torch.dtype, *, deviating: bool) -> bool:
    """Return whether too many results round to the wrong side by a pessimistic estimate.

    What is left of two large numbers has lost its digits: a result that lies far below its base.

    Args:
        results: some, 1-D, in the dtype that they were rounded to.
        models: of the same elements, ``(N, n)`` in float64.
        base: of the same elements, in float64.
        computed: the dtype that the results were computed in.
        deviating: results may be all but half-way between two numbers.
    """
    sizes = results.to(torch.float64).numpy()
    numbers, origin = models.numpy(), np.abs(base.numpy())
    with np.errstate(all="ignore"):
        cancelling = origin / np.abs(sizes) + 1
        wrong = np.minimum(cancelling * 2.0 ** (significand_bits(results.dtype) + 2 - significand_bits(computed)), 1)
        if deviating:
            wrong = np.maximum(wrong, np.where(cancelling * _ERROR[computed] > _DOUBTFUL[computed], _HALF_WAY, 0))
    # What is a model's own number, or beside a base of 0, has lost nothing.
    wrong[(sizes == numbers).any(axis=0) | (origin == 0)] = 0
    return bool(np.nan_to_num(wrong, nan=1).sum() > _TOLERATED * len(wrong))


def doubtful(values: Tensor, base: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    """Return which results lie so near a half-way point that the errors of arithmetic decide, as bools.

    Args:
        values: the results, in float32 or float64.
        base: what the differences were taken from, where it may be much larger than they are.
        dtype: that the results are rounded to.
    """
    if base is not None:
        error = values.abs().add_(base.abs()).mul_(_ERROR[values.dtype])
        return (narrowed(values - error, dtype) != narrowed(error.add_(values), dtype)).numpy()
    size = _DOUBTFUL[values.dtype]
    lacking = _BEYOND.get((values.dtype, dtype))
    if lacking is None:
        return (narrowed(values * (1 - size), dtype) != narrowed(values * (1 + size), dtype)).numpy()
    # The bits that the dtype lacks, so shifted that they are small near a half-way point.
    number = np.uint32 if values.dtype == torch.float32 else np.uint64
    beside = int(size * 2.0 ** significand_bits(values.dtype))
    place = np.add(values.numpy().view(number), number(2 ** (lacking - 1) + beside))
    place &= number(2**lacking - 1)
    return place <= number(2 * beside)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return results in the dtype of the output; those in float64 by way of float32, at which its last errors end."""
    return narrowed(values, dtype) if dtype.itemsize < 4 else values.to(dtype)
