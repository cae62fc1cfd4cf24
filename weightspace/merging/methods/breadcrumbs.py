r"""Model Breadcrumbs: differences from the base without the largest ones, which disturb, and the smallest ones.

Of :math:`n` elements the :math:`\lfloor\gamma n\rfloor` largest go, and as many of the smallest that
:math:`\lfloor\text{density}\cdot n\rfloor` remain; then task arithmetic, or the consensus of signs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from weightspace.merging.methods._sparsify import (
    absolute_sums,
    back_differences,
    elected_mean,
    largest_differences,
    restored,
    scale,
    summed,
    taken_from,
    trim,
    visible,
)
from weightspace.merging.methods._tensor_stack import Chunk, Formula, Stack
from weightspace.merging.methods.linear import normalised


def breadcrumbs(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Formula:
    """Return the formula of task arithmetic on what remains.

    Args:
        stack: the models and their base.
        weights: any finite numbers.
        density: share of the differences that remains, one per model; 1 keeps all.
        gamma: share of the largest ones that goes, one per model.
        lambda_: factor of the merged difference.
        normalize: divide by the sum of the weights.
        rescale: scale what remains to the L1 norm that the difference had.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.

    Source:
        Davari and Belilovsky 2024, https://arxiv.org/abs/2312.06795, section 3.
    """
    shown, (factor,) = visible(weights, stack), visible([lambda_], stack)
    factors = normalised(shown) if normalize else shown
    trail = _Trail(stack, density, gamma, rescale)
    return lambda piece: taken_from(piece.origin, summed(trail.terms(piece, factors)), factor)


def breadcrumbs_ties(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: bool,
) -> Formula:
    """Return the formula of the consensus of signs on what remains.

    Args and source: as ``breadcrumbs``; ``normalize`` divides by the weights of those that agree.
    """
    shown, (factor,) = visible(weights, stack), visible([lambda_], stack)
    trail = _Trail(stack, density, gamma, rescale)

    def formula(piece: Chunk) -> Tensor:
        agreed = elected_mean(trail.terms(piece, shown), shown, normalize=normalize)
        return taken_from(piece.origin, agreed, factor)

    return formula


class _Trail:
    """The differences of a stack between two cuts."""

    def __init__(self, stack: Stack, density: Sequence[float], gamma: Sequence[float], rescale: bool) -> None:
        count = stack.numel
        self.selected = stack.dtype
        kept = [count if share >= 1 else math.floor(share * count) for share in density]
        dropped = [min(math.floor(share * count), count - keep) for share, keep in zip(gamma, kept, strict=True)]
        self.upper = largest_differences(stack, dropped)
        self.lower = largest_differences(stack, [keep + drop for keep, drop in zip(kept, dropped, strict=True)])
        self.scales = self._scales(stack) if rescale else [1.0] * len(kept)

    def terms(self, piece: Chunk, factors: Sequence[float]) -> Tensor:
        """Return what remains of the differences of a piece, times the factors."""
        between = self._between(piece.start, back_differences(piece))
        return scale(between, [factor * own for factor, own in zip(factors, self.scales, strict=True)])

    def _between(self, start: int, backs: Tensor) -> Tensor:
        """Return what lies between the cuts."""
        return trim(backs.clone(), self.lower, start, self.selected) - trim(backs, self.upper, start, self.selected)

    def _scales(self, stack: Stack) -> list[float]:
        """Return the factors that restore the L1 norms."""
        before, after = np.zeros(len(self.upper)), np.zeros(len(self.upper))
        for piece in stack.working_pieces():
            backs = back_differences(piece)
            before += absolute_sums(backs)
            after += absolute_sums(self._between(piece.start, backs))
        return [restored(*sums) for sums in zip(before.tolist(), after.tolist(), strict=True)]
