r"""The steps that methods on sparse differences share: cut, scale, elect a sign, add to the base.

Differences are taken the other way round, ``b − x``: where nothing differs they are ``+0.0``, and ``b − (+0.0)`` has
the very bits of ``b``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.selection import Chunks, Cut, largest
from weightspace.merging.stack import PIECE, Piece, Stack
from weightspace.merging.sums import total

#: A sample of large tensors: runs of this many elements, one in so many.
_RUN, _EVERY = 1024, 65_536


def magnitudes(stack: Stack) -> Chunks:
    """Return the sizes of the differences of every model, as ``selection`` reads them."""

    def chunks() -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in stack.pieces():
            yield piece.start, _sizes(piece)

    return chunks


def sampled_magnitudes(stack: Stack) -> Chunks:
    """Return the same for short runs spread over the tensor."""

    def chunks() -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in runs(stack)():
            yield piece.start, _sizes(piece)

    return chunks


def runs(stack: Stack) -> Callable[[], Iterator[Piece]]:
    """Return what reads short runs spread over a large tensor, and nothing of one that a pass or two deal with."""

    def pieces() -> Iterator[Piece]:
        for start in range(0, stack.numel if stack.numel > 2 * PIECE else 0, _EVERY):
            yield stack.read(start, min(start + _RUN, stack.numel))

    return pieces


def largest_differences(stack: Stack, ranks: Sequence[int]) -> list[Cut]:
    """Return for every model the cut that keeps its ``k`` largest differences from the base.

    Args:
        stack: the models and their base, by grain ``elements``.
        ranks: ``k``, one a model.
    """
    return largest(magnitudes(stack), ranks, [stack.numel] * len(ranks), sampled_magnitudes(stack))


def back_differences(piece: Piece) -> list[Tensor]:
    """Return ``b − x_i``, one new tensor a model."""
    return [piece.origin - tensor for tensor in piece.tensors]


def trimmed(back: Tensor, cut: Cut, start: int) -> Tensor:
    """Return a 1-D difference, ``+0.0`` or ``-0.0`` where its size is cut off.

    Args:
        back: the difference; it may be changed.
        cut: of the sizes.
        start: position of its first element.
    """
    if cut.value == -math.inf:
        return back
    bound = cut.position - start
    if 0 < bound < len(back):
        array = back.numpy()
        np.multiply(array, cut.kept(np.abs(array), start), out=array)
        return back
    value = np.asarray(cut.value, dtype=back.numpy().dtype)
    # What equals the value is kept before the position: that is, what is above the next smaller number.
    threshold = value if bound <= 0 else np.nextafter(value, -np.inf, dtype=value.dtype)
    return torch.nn.functional.hardshrink(back, float(threshold)) if threshold >= 0 else back


def elected_mean(
    terms: Sequence[Tensor], weights: Sequence[float], *, normalize: bool, votes: Sequence[Tensor] | None = None
) -> Tensor:
    """Return the sum of the terms that agree with the elected sign, or their weighted mean.

    Args:
        terms: ``w_i (b − x_i)`` after trimming, of one shape. Where their sum is above 0 that is the sign; where it is
            0 or below, minus (an increase of ``x``) is.
        weights: ``w_i``.
        normalize: divide by the weights of those that agree; a sum of 0 counts as 1. A term of 0 agrees with nothing.
        votes: what elects the sign, where it isn't the terms.

    Source:
        Yadav et al. 2023, https://arxiv.org/abs/2306.01708, section 3.
    """
    sign = summed(votes or terms).sign_().sub_(0.5).sign_()
    result, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for term, weight in zip(terms, weights, strict=True):
        agreeing = (term * sign).clamp_min_(0)
        result += agreeing
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    if normalize:
        numbers = divisor.numpy()
        numbers += numbers == 0
        result /= divisor
    return result.mul_(sign)


def summed(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, in a new one."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def taken_from(origin: Tensor, back: Tensor, factor: float) -> Tensor:
    """Return ``b − factor · back``, with the very bits of ``b`` where ``back`` is a zero; ``back`` is changed."""
    return origin - back.mul_(factor).add_(0.0)


def absolute_sums(tensors: Sequence[Tensor]) -> np.ndarray:
    """Return ``Σ |x|`` of each tensor, in float64."""
    return np.array([total(tensor.abs()) for tensor in tensors])


def restored(before: float, after: float) -> float:
    """Return the factor that restores an L1 norm; 1 where nothing is left to be scaled."""
    return before / after if after > 0 else 1.0


def _sizes(piece: Piece) -> list[np.ndarray]:
    return [back.abs_().reshape(-1).numpy() for back in back_differences(piece)]
