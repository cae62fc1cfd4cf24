"""Running variances, which no merge may make negative.

A variance measures activations and cannot be extrapolated: beyond its models (negative weights, task vectors that
add up, a position above 1) the straight line soon falls below zero, and the network returns NaN. What would be negative
is the mean of the models' variances instead. That is no error, since such networks are made to have their statistics
recomputed, on curves and planes and after merges, which an error would prevent; without that, the network stays
finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.dtypes import widened
from weightspace.checkpoints.buffers import is_variance


def not_negative(name: str, merged: Tensor, models: Callable[[], Sequence[Tensor]]) -> Tensor:
    """Return a merged tensor, the negative elements of a running variance replaced by the mean of the models'.

    Where a model's own variance is negative already, the result stays what it is.

    Args:
        name: of the tensor, which says whether it is a variance.
        merged: the result.
        models: gives the models' tensors, of its shape; called where they are needed.
    """
    if not is_variance(name) or merged.is_complex() or not bool((merged < 0).any()):
        return merged
    wide = widened(models())
    sound = torch.stack(wide).amin(0) >= 0
    return torch.where((merged < 0) & sound, affine(wide, [1 / len(wide)] * len(wide)).to(merged.dtype), merged)
