"""The one rounding of a merge, to the dtype of the output, and where float32 is too coarse for it.

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


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return results in the dtype of the output; those in float64 by way of float32, at which its last errors end."""
    return narrowed(values, dtype) if dtype.itemsize < 4 else values.to(dtype)
