"""Running variances, which no merge may make negative.

A variance can't be extrapolated: outside the range of the models (negative weights, sums of task vectors, a position
above 1), the straight line soon falls below zero, and the network returns NaN. Negative elements are therefore replaced
by the mean of the models' variances. This isn't an error, since such networks usually have their statistics recomputed,
on curves and planes and after merges, which an error would prevent; without that, the network stays finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.dtypes import widened
from weightspace.checkpoints.buffers import is_variance


def not_negative(name: str, merged: Tensor, models: Callable[[], Sequence[Tensor]]) -> Tensor:
    """Return a merged tensor with negative elements of a running variance replaced by the models' mean.

    Where a model's own variance is already negative, the result is unchanged.

    Args:
        name: name of the tensor, which tells whether it is a variance.
        merged: the result.
        models: returns the models' tensors, of the same shape; called when needed.
    """
    if not is_variance(name) or merged.is_complex() or not bool((merged < 0).any()):
        return merged
    wide = widened(models())
    sound = torch.stack(wide).amin(0) >= 0
    return torch.where((merged < 0) & sound, affine(wide, [1 / len(wide)] * len(wide)).to(merged.dtype), merged)
