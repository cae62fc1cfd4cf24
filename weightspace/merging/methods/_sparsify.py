r"""The steps that methods on sparse differences share: cut, scale, elect a sign, add to the base.

Differences are taken the other way round, ``b − x``: where nothing differs they are ``+0.0``, and ``b − (+0.0)`` has
the very bits of ``b``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import simple_or_none
from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._tensor_stack import PIECE, Chunk, Stack
from weightspace.merging.methods._topk import Chunks, Cut, largest

#: A sum of votes below this share of the largest one is rounding.
_CLOSE = 2.0**-18

#: Deviations of weights times this show in float64.
_ENLARGED = 2**13

#: A sample of large tensors: runs of this many elements, one in so many; and runs that are read at a time.
_RUN, _EVERY, _TOGETHER = 1024, 65_536, 256


def magnitudes(stack: Stack) -> Chunks:
    """Return the sizes of the differences of every model, as ``selection`` reads them."""

    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in stack.pieces(first):
            yield piece.start, _sizes(piece)

    return chunks


def sampled_magnitudes(stack: Stack) -> Chunks:
    """Return the same for short runs spread over the tensor."""

    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in runs(stack)(first):
            yield piece.start, _sizes(piece)

    return chunks


def runs(stack: Stack) -> Callable[[int], Iterator[Chunk]]:
    """Return what reads short runs spread over a large tensor, and nothing of one that a pass or two deal with."""

    def pieces(first: int) -> Iterator[Chunk]:
        starts = range(first, stack.numel - _RUN + 1 if stack.numel > 2 * PIECE else 0, _EVERY)
        for index in range(0, len(starts), _TOGETHER):
            yield stack.scattered(starts[index : index + _TOGETHER], _RUN)

    return pieces


def largest_differences(stack: Stack, ranks: Sequence[int]) -> list[Cut]:
    """Return for every model the cut that keeps its ``k`` largest differences from the base.

    Args:
        stack: the models and their base, by grain ``elements``.
        ranks: ``k``, one per model.
    """
    return largest(magnitudes(stack), ranks, [stack.numel] * len(ranks), sampled_magnitudes(stack))


def back_differences(piece: Chunk) -> Tensor:
    """Return ``b − x_i``, the models along dim 0, in the place of the models: near memory is what sets the speed."""
    return torch.sub(piece.origin, piece.models, out=piece.models)


def trim(backs: Tensor, cuts: Sequence[Cut], start: int, selected: torch.dtype) -> Tensor:
    """Set differences to ``+0.0`` or ``-0.0``, in place, where their size is cut off.

    Args:
        backs: the differences, ``(N, n)``.
        cuts: of the sizes, one per model.
        start: position of the first element.
        selected: the dtype in which the cuts were found; sizes count as what they are in it.
    """
    for back, cut in zip(backs, cuts, strict=True):
        bound = cut.position - start
        if cut.value == -math.inf:
            continue
        if 0 < bound < len(back):
            array = back.numpy()
            np.multiply(array, cut.kept(np.abs(back.to(selected).numpy()), start), out=array)
            continue
        threshold = _threshold(cut.value, bound > 0, selected, back.dtype)
        if threshold >= 0:
            torch.hardshrink(back, threshold, out=back)
    return backs


def _threshold(value: float, kept: bool, selected: torch.dtype, dtype: torch.dtype) -> float:
    """Return the largest number of ``dtype`` that is dropped.

    Args:
        value: where sizes are cut.
        kept: keep what equals it.
        selected: the dtype in which they are cut.
        dtype: of the sizes, which are rounded to that first.
    """
    narrow = np.float32 if selected == torch.float32 else np.float64
    dropped = np.nextafter(narrow(value), narrow(-np.inf)) if kept else narrow(value)
    if dtype == selected:
        return float(dropped)
    # Half-way to the next number rounds to the even one of the two.
    half = (float(dropped) + float(np.nextafter(dropped, narrow(np.inf)))) / 2
    return half if narrow(half) == dropped else math.nextafter(half, -math.inf)


def scale(backs: Tensor, factors: Sequence[float]) -> Tensor:
    """Multiply each model's differences, along dim 0, by its factor, in place."""
    for back, factor in zip(backs, factors, strict=True):
        if factor != 1:
            back.mul_(factor)
    return backs


def visible(numbers: Sequence[float], stack: Stack) -> list[float]:
    """Return weights as float64 has to see them for results in float32; for any others, themselves.

    Where a result is half-way between two numbers but for the last digit of a weight such as 0.3, its rounding would
    decide instead. The deviation of 0.3 from 3/10 is enlarged by so much that it shows there, and in no other result.
    """
    if stack.work != torch.float64 or stack.dtype == torch.float64:
        return list(numbers)
    pairs = [(Fraction(number), simple_or_none(number)) for number in numbers]
    return [float(exact if near is None else near + _ENLARGED * (exact - near)) for exact, near in pairs]


def elected_mean(
    terms: Tensor, weights: Sequence[float], *, normalize: bool, close: list[np.ndarray] | None = None
) -> Tensor:
    """Return the sum of the terms that agree with the sign that they elect, or their weighted mean.

    Args:
        terms: ``w_i (b − x_i)`` after trimming, along dim 0; they are overwritten.
        weights: ``w_i``.
        normalize: divide by the weights of those that agree; a sum of 0 counts as 1. A term of 0 agrees with nothing.
        close: is appended where the votes leave next to nothing of each other.

    Source:
        Yadav et al. 2023, https://arxiv.org/abs/2306.01708, section 3.
    """
    votes = summed(terms)
    sign = _sign_of(votes)
    agreeing = terms.mul_(sign).clamp_min_(0)
    result = summed(agreeing, out=None if normalize else agreeing[0])
    if close is not None:
        close.append(votes.abs_().mul_(1 / _CLOSE).numpy() < result.numpy())
    return _mean_of(result, agreeing, weights).mul_(sign) if normalize else result.mul_(sign)


def elected_sign(votes: Tensor) -> Tensor:
    """Return 1 where the sum of the votes along dim 0 is above 0; where it is 0 or below, −1: an increase of ``x``."""
    return _sign_of(summed(votes))


def _sign_of(total: Tensor) -> Tensor:
    return torch.threshold(total, 0.0, -1.0).sign_()


def agreeing_mean(terms: Tensor, sign: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of the terms of a given sign; args as ``elected_mean``."""
    agreeing = terms.mul_(sign).clamp_min_(0)
    return _mean_of(summed(agreeing), agreeing, weights).mul_(sign)


def _mean_of(total: Tensor, agreeing: Tensor, weights: Sequence[float]) -> Tensor:
    """Return a sum, in place, over the weights of those that are not 0, which are overwritten."""
    first, *others = agreeing.sign_()
    divisor = first.mul_(weights[0])
    for other, weight in zip(others, weights[1:], strict=True):
        divisor.add_(other, alpha=weight)
    return total.div_(_without_zeros(divisor, weights))


def _without_zeros(divisor: Tensor, weights: Sequence[float]) -> Tensor:
    """Return sums of weights, each 0 replaced by a number that does: 1, or where only zeros are divided by it, any."""
    if min(weights) >= 0:  # a sum of 0 has nothing that agrees
        least = min((weight for weight in weights if weight > 0), default=1.0) / 2
        return divisor.clamp_min_(max(least, torch.finfo(divisor.dtype).tiny))
    numbers = divisor.numpy()
    numbers += numbers == 0
    return divisor


def summed(terms: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """Return the sum of tensors (of a tensor: along dim 0), in their order, in a new one or in ``out``: the first."""
    first, *others = terms
    if not others:
        return first.clone() if out is None else first
    total = torch.add(first, others[0], out=out)
    for term in others[1:]:
        total += term
    return total


def taken_from(origin: Tensor, back: Tensor, factor: float) -> Tensor:
    """Return ``b − factor · back``, in the place of ``back``, with the very bits of ``b`` where that is a zero."""
    torch.add(torch.zeros((), dtype=back.dtype), back, alpha=factor, out=back)  # +0.0, never −0.0
    return torch.sub(origin, back, out=back)


def absolute_sums(backs: Tensor) -> np.ndarray:
    """Return ``Σ |x|`` of each model's differences, along dim 0, in float64."""
    return row_sums(backs.abs().flatten(1)).numpy()


def restored(before: float, after: float) -> float:
    """Return the factor that restores an L1 norm; 1 where nothing is left to be scaled."""
    return before / after if after > 0 else 1.0


def _sizes(piece: Chunk) -> list[np.ndarray]:
    return list(back_differences(piece).abs_().numpy())
