"""A weight with an adapter's change applied, read by ranges: products of factors, and DoRA's magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightspace.lora.adapter import Factors
from weightspace.lora.low_rank import Adapted, Changed, wide_dtype
from weightspace.lora.products import change_of, low_rank_a

if TYPE_CHECKING:
    from weightspace.checkpoints.reader import RangeReader

#: Elements that are read at a time to compute norms.
_BLOCK = 2**17


def adapted(base: RangeReader, factors: Factors, tensors: Mapping[str, Tensor]) -> RangeReader:
    """Apply the change of a tensor.

    Args:
        base: the weight.
        factors: its change.
        tensors: role -> tensor of the adapter, as in ``factors.names``.

    Returns:
        ``W' = W + ΔW``, or with DoRA ``m · W' / ‖W'‖``.
    """
    if factors.product == "low-rank":
        a, b = low_rank_a(tensors), tensors["B"]
        a, b = (a, b) if factors.part is None else factors.part.of(a, b)
        changed: RangeReader = Adapted(base, a, b, factors.scale, transposed=factors.transposed)
    else:
        dtype = wide_dtype(base.dtype, *(tensor.dtype for tensor in tensors.values()))
        changed = Changed(base, change_of(factors, tensors, dtype))
    return changed if factors.axis is None else Decomposed(changed, tensors["magnitude"], factors.axis)


class Decomposed:
    """A weight scaled to DoRA's magnitudes: ``m · W / ‖W‖``, with a norm per index along one axis.

    The norms are computed once, in blocks, when the first range is read. A part of the weight that is zero stays zero.

    Source:
        Liu et al. 2024, https://arxiv.org/abs/2402.09353, equation 5.
    """

    def __init__(self, weight: RangeReader, magnitude: Tensor, axis: int) -> None:
        """Scale a weight.

        Args:
            weight: the weight with its change, of at least two axes.
            magnitude: as many numbers as the axis is long.
            axis: 0 for the outputs, 1 for the inputs of a layer stored as ``(out, in, *kernel)``.
        """
        self.shape = weight.shape
        self.dtype = wide_dtype(weight.dtype, magnitude.dtype)
        self._weight = weight
        self._magnitude = magnitude.reshape(-1).to(torch.float64)
        self._inner = math.prod(self.shape[axis + 1 :])

    def read(self, start: int, stop: int) -> Tensor:
        """Return new elements from ``start`` up to ``stop``."""
        index = self._index(start, stop)
        return (self._weight.read(start, stop).to(torch.float64) * self._ratios[index]).to(self.dtype)

    def _index(self, start: int, stop: int) -> Tensor:
        """Return the positions of elements along the axis."""
        return torch.arange(start, stop).div_(self._inner, rounding_mode="floor") % len(self._magnitude)

    @cached_property
    def _ratios(self) -> Tensor:
        """``m / ‖W‖``, with 0 for a norm of 0."""
        squares = torch.zeros_like(self._magnitude)
        for start in range(0, math.prod(self.shape), _BLOCK):
            stop = min(start + _BLOCK, math.prod(self.shape))
            values = self._weight.read(start, stop).to(torch.float64)
            squares.index_add_(0, self._index(start, stop), values.square_())
        return torch.where(squares > 0, self._magnitude / squares.sqrt(), 0.0)
