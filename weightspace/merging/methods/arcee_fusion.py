r"""Arcee fusion: what changed outstandingly is taken, all else stays the base's.

The importance of an element is

.. math:: |x - b| \cdot \mathrm{KL}(\operatorname{softmax} x \,\|\, \operatorname{softmax} b)

with the divergence along the last axis; :math:`x` is taken where it is at least the median plus 1.5 interquartile
ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._tensor_stack import Chunk, Formula, Stack
from weightspace.merging.methods._topk import EVERYTHING, largest


def arcee_fusion(stack: Stack, weights: Sequence[float]) -> Formula:
    """Return the formula of arcee fusion, with exact quantiles (the lower one of two neighbours).

    Args:
        stack: one model and the base.
        weights: not used.

    Source:
        mergekit, https://arxiv.org/abs/2403.13257, ``arcee_fusion``, whose quantiles are those of a sample.
    """
    count = stack.numel

    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in stack.pieces(first):
            yield piece.start, [_importance(piece).reshape(-1).numpy()] * 3

    # The q-quantile is number ⌊q (n − 1)⌋ from below: the smallest of the n − ⌊q (n − 1)⌋ largest.
    ranks = [count - int(share * (count - 1)) for share in (0.25, 0.5, 0.75)]
    low, median, high = (
        min(float(found[0].min()) for _, found in chunks(0)) if cut == EVERYTHING else cut.value
        for cut in largest(chunks, ranks, [count] * 3)
    )
    bound = median + 1.5 * (high - low)

    def formula(piece: Chunk) -> Tensor:
        return torch.where(_importance(piece) >= bound, piece.tensors[0], piece.origin)

    return formula


def _importance(piece: Chunk) -> Tensor:
    """Return the importance of every element, in float64."""
    x, b = piece.tensors[0].double(), piece.origin.double()
    logs, base = x.log_softmax(dim=-1), b.log_softmax(dim=-1)
    terms = logs.exp() * (logs - base)
    divergence = row_sums(terms.reshape(-1, terms.shape[-1])).view(*terms.shape[:-1], 1)
    return (x - b).abs_().mul_(divergence.clamp_min_(0))
