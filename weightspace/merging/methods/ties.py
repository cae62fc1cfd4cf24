r"""TIES: trim the differences from the base, elect a sign element by element, average those that agree.

.. math:: b + \lambda\, \frac{\sum_{i \in A} s_i}{\sum_{i \in A} w_i}, \qquad s_i = w_i \operatorname{trim}(x_i - b),
    \quad A = \{i : \operatorname{sign} s_i = \operatorname{sign} \textstyle\sum_j s_j\}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.methods._masked_sum import MaskedSum
from weightspace.merging.methods._rounding import RefinedFormula
from weightspace.merging.methods._sparsify import (
    absolute_sums,
    back_differences,
    elected_mean,
    largest_differences,
    magnitudes,
    restored,
    sampled_magnitudes,
    scale,
    taken_from,
    trim,
)
from weightspace.merging.methods._tensor_stack import Chunk, Formula, Stack
from weightspace.merging.methods._topk import Chunks, Cut, largest


def ties(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    scope: str,
    cuts: Sequence[Cut] | None = None,
) -> Formula:
    """Return the formula of TIES.

    Args:
        stack: the models and their base.
        weights: any finite numbers; negative ones vote for the opposite.
        density: share of the largest differences that is kept, at least one element, one per model.
        lambda_: factor of the merged difference.
        normalize: divide by the weights of those that agree.
        rescale: scale the trimmed differences to the L1 norm that they had.
        scope: ``tensor`` trims tensor by tensor; ``model`` over the whole model, which is what ``survey`` is for.
        cuts: where the differences are cut, one per model, as the survey found.

    Source:
        Yadav et al. 2023, https://arxiv.org/abs/2306.01708, algorithm 1; the sign is elected by the weighted sum, as
        in mergekit.
    """
    found = cuts or largest_differences(stack, [kept_count(share, stack.numel) for share in density])
    if normalize and min(weights) > 0:  # only their ratios count
        equal, exponent = min(weights) == max(weights), math.frexp(max(weights))[1]
        weights = [1.0 if equal else math.ldexp(weight, -exponent) for weight in weights]
    factors = list(weights)
    if rescale:
        factors = [weight * restoring for weight, restoring in zip(weights, _restoring(stack, found), strict=True)]

    def quick(piece: Chunk, close: list[np.ndarray] | None) -> Tensor:
        terms = scale(trim(back_differences(piece), found, piece.start, stack.dtype), factors)
        return taken_from(piece.origin, elected_mean(terms, weights, normalize=normalize, close=close), lambda_)

    def kept(models: Tensor, base: Tensor, positions: Tensor) -> Tensor:
        sizes = (base.to(stack.dtype) - models.to(stack.dtype)).abs_()
        return torch.stack([cut.kept_at(size, positions) for cut, size in zip(found, sizes, strict=True)])

    return RefinedFormula(quick, MaskedSum(kept, factors, weights, lambda_, normalize))


def kept_count(density: float, count: int) -> int:
    """Return how many of the largest of ``count`` numbers a density keeps: ``max(1, ⌊density · n⌋)``, or all."""
    return count if density >= 1 else max(1, math.floor(density * count))


def survey(stacks: Sequence[Stack], arguments: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return where every tensor is cut when the densities hold over the whole model (``scope: model``).

    The tensors follow each other in the order of their names: equal differences are kept from the first one on.

    Args:
        stacks: all tensors, by name.
        arguments: of the method for each of them; the first one's density counts.
    """
    if not stacks:
        return {}
    offsets = np.cumsum([0, *(stack.numel for stack in stacks)]).tolist()
    density, total = arguments[0]["density"], offsets[-1]
    cuts = largest(
        _joined([magnitudes(stack) for stack in stacks], offsets),
        [kept_count(share, total) for share in density],
        [total] * len(density),
        _joined([sampled_magnitudes(stack) for stack in stacks], offsets),
    )
    return {
        stack.name: {"cuts": [Cut(cut.value, cut.position - offset) for cut in cuts]}
        for stack, offset in zip(stacks, offsets, strict=False)
    }


def _joined(parts: Sequence[Chunks], offsets: Sequence[int]) -> Chunks:
    """Return the chunks of several tensors as those of one."""

    def chunks(first: int) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
        for part, offset, end in zip(parts, offsets, offsets[1:], strict=False):
            if first < end:
                for start, statistics in part(max(0, first - offset)):
                    yield offset + start, statistics

    return chunks


def _restoring(stack: Stack, cuts: Sequence[Cut]) -> list[float]:
    """Return the factors that restore the L1 norms of the trimmed differences."""
    before, after = np.zeros(len(cuts)), np.zeros(len(cuts))
    for piece in stack.working_pieces():
        backs = back_differences(piece)
        before += absolute_sums(backs)
        after += absolute_sums(trim(backs, cuts, piece.start, stack.dtype))
    return [restored(*sums) for sums in zip(before.tolist(), after.tolist(), strict=True)]
