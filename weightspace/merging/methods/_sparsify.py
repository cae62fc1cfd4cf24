"""Cuts that keep the largest elements of task vectors, and factors that restore their norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import simple_or_none
from weightspace.merging.methods._masked_sum import Kept
from weightspace.merging.methods._task_vectors import TaskVectors
from weightspace.merging.methods._tensor_stack import CHUNK, Chunk, TensorStack
from weightspace.merging.methods._topk import Cut, StatisticChunks, largest

#: Deviations of weights times this are visible in float64.
_ENLARGED = 2**13

#: A sample of large tensors: runs of this many elements, one in so many; and runs that are read at a time.
_RUN, _EVERY, _TOGETHER = 1024, 65_536, 256


def kept_count(density: float, count: int) -> int:
    """Return the number of elements that a density keeps: ``max(1, ⌊density · n⌋)``, or all."""
    return count if density >= 1 else max(1, math.floor(density * count))


def relative(weights: Sequence[float]) -> list[float]:
    """Return weights of which only the ratios matter: 1 if all are equal, unchanged if one isn't positive."""
    if min(weights) <= 0:
        return list(weights)
    equal, exponent = min(weights) == max(weights), math.frexp(max(weights))[1]
    return [1.0 if equal else math.ldexp(weight, -exponent) for weight in weights]


def largest_differences(stack: TensorStack, ranks: Sequence[int]) -> list[Cut]:
    """Return the cut for every model that keeps the ``k`` largest elements of its task vector.

    Args:
        stack: the models and their base, with granularity ``elements``.
        ranks: ``k``, one per model.
    """
    return largest(magnitudes(stack), ranks, [stack.numel] * len(ranks), sampled_magnitudes(stack))


def kept_by(cuts: Sequence[Cut], stack: TensorStack) -> Kept:
    """Return a function that tells which elements at given positions the cuts keep, one cut per model."""

    def kept(models: Tensor, base: Tensor, positions: Tensor) -> Tensor:
        sizes = (base.to(stack.dtype) - models.to(stack.dtype)).abs_()
        return torch.stack([cut.kept_at(size, positions) for cut, size in zip(cuts, sizes, strict=True)])

    return kept


def magnitudes(stack: TensorStack) -> StatisticChunks:
    """Return a reader of the magnitudes of all task vectors."""
    return _magnitudes(stack.chunks)


def sampled_magnitudes(stack: TensorStack) -> StatisticChunks:
    """Return a reader of the magnitudes in short runs spread over the tensor."""
    return _magnitudes(runs(stack))


def _magnitudes(chunks: Callable[[int], Iterator[Chunk]]) -> StatisticChunks:
    def statistics(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for chunk in chunks(first):
            yield chunk.start, list(TaskVectors(chunk).magnitudes().numpy())

    return statistics


def runs(stack: TensorStack) -> Callable[[int], Iterator[Chunk]]:
    """Return a reader of short runs spread over a large tensor; of nothing for a small one, which is read whole."""

    def chunks(first: int) -> Iterator[Chunk]:
        starts = range(first, stack.numel - _RUN + 1 if stack.numel > 2 * CHUNK else 0, _EVERY)
        for index in range(0, len(starts), _TOGETHER):
            yield stack.scattered(starts[index : index + _TOGETHER], _RUN)

    return chunks


def restored(before: float, after: float) -> float:
    """Return the factor that restores an L1 norm; 1 if nothing remains to be scaled."""
    return before / after if after > 0 else 1.0


def restoring_factors(stack: TensorStack, edit: Callable[[TaskVectors], TaskVectors]) -> list[float]:
    """Return one factor per model that restores the L1 norm of its task vector after an edit."""
    before, after = np.zeros(len(stack.sources)), np.zeros(len(stack.sources))
    for chunk in stack.working_chunks():
        vectors = TaskVectors(chunk)
        before += vectors.absolute_sums()
        after += edit(vectors).absolute_sums()
    return [restored(*sums) for sums in zip(before.tolist(), after.tolist(), strict=True)]


def visible(numbers: Sequence[float], stack: TensorStack) -> list[float]:
    """Return weights as float64 must see them for float32 results; for other results, unchanged.

    Where a result is half-way between two numbers except for the last digit of a weight such as 0.3, its rounding would
    decide instead. The deviation of 0.3 from 3/10 is enlarged so that it shows there, and in no other result.
    """
    if stack.work != torch.float64 or stack.dtype == torch.float64:
        return list(numbers)
    pairs = [(Fraction(number), simple_or_none(number)) for number in numbers]
    return [float(exact if near is None else near + _ENLARGED * (exact - near)) for exact, near in pairs]
