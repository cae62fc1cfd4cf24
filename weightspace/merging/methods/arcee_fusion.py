r"""Arcee fusion: keep only outlier updates, and the base everywhere else.

The importance of an element is

.. math:: |x - b| \cdot \mathrm{KL}(\operatorname{softmax} x \,\|\, \operatorname{softmax} b)

with the divergence along the last axis; :math:`x` is used where its importance is at least the median plus 1.5
interquartile ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods._topk import EVERYTHING, largest


@merge_method(
    formula="x where the importance of its change from b is an outlier, otherwise b",
    source="mergekit, https://arxiv.org/abs/2403.13257",
    base="end",
    models=(1, 1),
    granularity="slices",
    weighted=False,
    scale_free=False,
    doubles=False,
    cost=60,
    copies=30,
    searches=3,
)
def arcee_fusion(
    stack: TensorStack,
    weights: Sequence[float],
) -> Formula:
    """Return the formula of Arcee fusion with exact quartiles (mergekit samples), each the lower of two neighbours."""
    count = stack.numel

    def statistics(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for chunk in stack.chunks(first):
            yield chunk.start, [_importance(chunk).reshape(-1).numpy()] * 3

    # The q-quantile is number ⌊q (n − 1)⌋ from below: the smallest of the n − ⌊q (n − 1)⌋ largest.
    ranks = [count - int(share * (count - 1)) for share in (0.25, 0.5, 0.75)]
    low, median, high = (
        min(float(found[0].min()) for _, found in statistics(0)) if cut == EVERYTHING else cut.value
        for cut in largest(statistics, ranks, [count] * 3)
    )
    bound = median + 1.5 * (high - low)

    def formula(chunk: Chunk) -> Tensor:
        return torch.where(_importance(chunk) >= bound, chunk.tensors[0], chunk.origin)

    return formula


def _importance(chunk: Chunk) -> Tensor:
    """Return the importance of every element, in float64."""
    x, b = chunk.tensors[0].double(), chunk.origin.double()
    logs, base = x.log_softmax(dim=-1), b.log_softmax(dim=-1)
    terms = logs.exp() * (logs - base)
    divergence = row_sums(terms.reshape(-1, terms.shape[-1])).view(*terms.shape[:-1], 1)
    return (x - b).abs_().mul_(divergence.clamp_min_(0))
