"""The final rounding of a merge to the output dtype, and refinement where faster arithmetic is too coarse for it.

Weights such as 0.3 put results exactly half-way between two numbers of bfloat16 or float16, where the smallest error
decides. Usually float32 is exact there; if the differences are as large as the network's weights it isn't, and then
many results are next to a half-way point by an error in their last bits. Models that cancel their base, such as pruned
ones, leave only such errors. Both are visible in the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.double_word import narrowed
from weightspace.arithmetic.dtypes import significand_bits
from weightspace.arithmetic.nonfinite import finite, is_finite
from weightspace.merging.methods._masked_sum import MaskedSum
from weightspace.merging.methods._registry import JUDGED_CHUNKS
from weightspace.merging.methods._tensor_stack import Chunk, TensorStack, check_finite

#: Narrow dtype -> number of float32 bits that it lacks.
_LACKING = {torch.bfloat16: 16, torch.float16: 13}

#: A result is next to a half-way point within this many units in the last place of float32.
_BESIDE = 4

#: Number of sampled elements in a chunk.
_SAMPLE = 2**11

#: A result below this fraction of the base is left by cancellation.
_CANCELLED = 2.0**-18

#: Results next to half-way points are significant if they exceed chance by this factor, and this number.
_TIMES, _FEW = 6, 2

#: Maximum error of a sum of differences from a base, relative to the size of both.
_ERROR = {torch.float32: 2.0**-21, torch.float64: 2.0**-49}

#: Assumed error if the base is of the same size as the results.
_DOUBTFUL = {torch.float32: 2.0**-19, torch.float64: 2.0**-44}

#: Dtypes of values and results -> bits that the latter lacks, if it has at least the same exponent range.
_BEYOND = {(torch.float32, torch.bfloat16): 16, (torch.float64, torch.float32): 29}

#: Approximate fraction of results that are nearly half-way between two numbers, where their error decides.
_HALF_WAY = 0.02

#: Permitted fraction of wrongly rounded elements in a pessimistic estimate, several times the actual one.
_TOLERATED = 3e-3


def needs_float64(values: Tensor, base: Tensor | None, dtype: torch.dtype) -> bool:
    """Return whether float32 errors would affect more of the results than chance does.

    Args:
        values: results, in the dtype that they were computed in.
        base: the base of the differences, of the same shape, or None.
        dtype: dtype of the output.
    """
    if dtype not in _LACKING or values.dtype != torch.float32:
        return False
    step = values.numel() // _SAMPLE + 1
    sample = values.reshape(-1)[::step].contiguous().numpy()
    if base is not None:
        bound = np.abs(base.reshape(-1)[::step].numpy()) * np.float32(_CANCELLED)
        if np.count_nonzero((np.abs(sample) < bound) & (sample != 0)) > _FEW:
            return True
    return _many_beside_half_way(sample.view(np.uint32), _LACKING[dtype])


def _many_beside_half_way(sample: np.ndarray, lacking: int) -> bool:
    """Return whether more numbers are just next to half-way points than by chance, judging by their bits."""
    # The bits that the dtype lacks, moved to the top so that the half-way point is 2^31, and shifted to be
    # _BESIDE above 0.
    place = np.left_shift(sample, 32 - lacking)
    place += np.uint32(2**31 + (_BESIDE << (32 - lacking)) & 2**32 - 1)
    near = np.count_nonzero(place <= np.uint32(2 * _BESIDE << (32 - lacking)))
    exact = np.count_nonzero(place == np.uint32(_BESIDE << (32 - lacking)))
    return bool(near - exact > max(_FEW, _TIMES * len(sample) * 2 * _BESIDE / 2**lacking))


def loses(results: Tensor, models: Tensor, base: Tensor, computed: torch.dtype, *, deviating: bool) -> bool:
    """Return whether too many results are rounded wrongly, in a pessimistic estimate.

    The difference of two large numbers has lost digits: such a result is far below its base.

    Args:
        results: some results, 1-D, in the dtype that they were rounded to.
        models: the same elements of the models, ``(N, n)`` in float64.
        base: the same elements of the base, in float64.
        computed: the dtype that the results were computed in.
        deviating: whether results may be nearly half-way between two numbers.
    """
    sizes = results.to(torch.float64).numpy()
    numbers, origin = models.numpy(), np.abs(base.numpy())
    with np.errstate(all="ignore"):
        cancelling = origin / np.abs(sizes) + 1
        wrong = np.minimum(cancelling * 2.0 ** (significand_bits(results.dtype) + 2 - significand_bits(computed)), 1)
        if deviating:
            wrong = np.maximum(wrong, np.where(cancelling * _ERROR[computed] > _DOUBTFUL[computed], _HALF_WAY, 0))
    # A model's own number, or a result with a base of 0, has lost nothing.
    wrong[(sizes == numbers).any(axis=0) | (origin == 0)] = 0
    return bool(np.nan_to_num(wrong, nan=1).sum() > _TOLERATED * len(wrong))


def doubtful(values: Tensor, base: Tensor | None, dtype: torch.dtype) -> np.ndarray:
    """Return which results are so close to a half-way point that arithmetic errors decide, as bools.

    Args:
        values: the results, in float32 or float64.
        base: the base of the differences, if it may be much larger than the results.
        dtype: dtype that the results are rounded to.
    """
    if base is not None:
        error = values.abs().add_(base.abs()).mul_(_ERROR[values.dtype])
        return (narrowed(values - error, dtype) != narrowed(error.add_(values), dtype)).numpy()
    size = _DOUBTFUL[values.dtype]
    lacking = _BEYOND.get((values.dtype, dtype))
    if lacking is None:
        return (narrowed(values * (1 - size), dtype) != narrowed(values * (1 + size), dtype)).numpy()
    # The bits that the dtype lacks, shifted to be small near a half-way point.
    number = np.uint32 if values.dtype == torch.float32 else np.uint64
    beside = int(size * 2.0 ** significand_bits(values.dtype))
    place = np.add(values.numpy().view(number), number(2 ** (lacking - 1) + beside))
    place &= number(2**lacking - 1)
    return place <= number(2 * beside)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return results in the output dtype; those in float64 via float32, which removes errors in the last bits."""
    return narrowed(values, dtype) if dtype.itemsize < 4 else values.to(dtype)


#: Fast computation of a chunk's merged elements. Given a list, it appends the positions where the vote is nearly even.
FastFormula: TypeAlias = Callable[[Chunk, "list[np.ndarray] | None"], Tensor]

#: Number of elements computed by double words at a time.
_TOGETHER = 2**14

#: Approximate number of sampled elements in these chunks.
_JUDGED = 2**11


@dataclass(frozen=True)
class RefinedFormula:
    """A formula with a fast and an exact version.

    Attributes:
        fast: in the arithmetic of the dtype.
        exact: the same by double words.
    """

    fast: FastFormula
    exact: MaskedSum

    def __call__(self, chunk: Chunk) -> Tensor:
        """Return the merged elements of a chunk, in its dtype."""
        return self.fast(chunk, None)


def refined_chunks(
    formula: RefinedFormula, stack: TensorStack, dtype: torch.dtype, first: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Yield the merged tensor chunk by chunk.

    Args:
        formula: formula of the method.
        stack: the models and their base.
        dtype: dtype of the output.
        first: first element, a multiple of ``refined_span``.

    Raises:
        WeightspaceError: the stack or the result contains NaN or infinity (``stack.finite``).
    """
    parts: list[tuple[int, Tensor]] = []
    places: list[np.ndarray] = []
    for chunk in stack.working_chunks(first):
        result, unsure = _fast_result(formula, chunk, dtype, cancelling=False)
        parts.append((chunk.start, result))
        places.append(unsure)
        stop = chunk.start + len(result)
        if len(parts) == JUDGED_CHUNKS or stop == stack.numel:
            stored = stack.stored(parts[0][0], stop)
            if _loses(formula, stack, parts, stored):
                places = [_once_more(formula, stack, start, result) for start, result in parts]
            _refine(formula.exact, stored, parts, np.concatenate(places))
            for start, result in parts:
                if not is_finite(result):
                    _settle(formula, stack, start, result)
                yield start, result
            parts, places = [], []


def refined_span(stack: TensorStack) -> int:
    """Return how many elements are made together, the last ones aside."""
    return JUDGED_CHUNKS * stack.span


def _fast_result(
    formula: RefinedFormula, chunk: Chunk, dtype: torch.dtype, *, cancelling: bool
) -> tuple[Tensor, np.ndarray]:
    """Return the fast result of a chunk, and the positions in the tensor of doubtful elements."""
    close: list[np.ndarray] | None = [] if formula.exact.deviating else None
    values = formula.fast(chunk, close)
    # A chunk's memory is reused for the next one.
    result = rounded(values, dtype) if values.dtype != dtype else values.clone()
    if close is None and not cancelling:
        return result, np.empty(0, np.int64)
    unsure = doubtful(values, chunk.origin if cancelling else None, dtype)
    for votes in close or ():
        unsure |= votes
    return result, np.flatnonzero(unsure) + chunk.start


def _loses(
    formula: RefinedFormula, stack: TensorStack, parts: Sequence[tuple[int, Tensor]], stored: Sequence[Tensor]
) -> bool:
    """Return whether the fast version is too coarse for some chunks, judging by sampled elements."""
    start, count = parts[0][0], len(stored[0])
    step = count // _JUDGED + 1
    models, base = _elements(stored, slice(None, None, step))
    results = torch.cat([result[(start - begin) % step :: step] for begin, result in parts])
    computed = stack.work or stack.dtype
    return loses(results, models, base, computed, deviating=formula.exact.deviating)


def _elements(stored: Sequence[Tensor], places: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Return some elements of the models, ``(N, n)``, and of the base, ``(n,)``, in float64."""
    rows = torch.stack([tensor[places].to(torch.float64) for tensor in stored])
    return rows[:-1], rows[-1]


def _once_more(formula: RefinedFormula, stack: TensorStack, start: int, result: Tensor) -> np.ndarray:
    """Return which elements of a result are doubtful when its error is as large as it can be, given its base."""
    chunk = stack.read(start, start + len(result), stack.work)
    return _fast_result(formula, chunk, result.dtype, cancelling=True)[1]


def _refine(
    exact: MaskedSum, stored: Sequence[Tensor], parts: Sequence[tuple[int, Tensor]], positions: np.ndarray
) -> None:
    """Recompute doubtful elements by double words, in place."""
    bits = max(significand_bits(tensor.dtype) for tensor in stored)
    first, stop = parts[0][0], parts[0][0] + len(stored[0])
    for some in torch.from_numpy(positions).split(_TOGETHER):
        models, base = _elements(stored, some - first)
        exact_results = exact(models, base, some, parts[0][1].dtype, bits)
        bounds = torch.searchsorted(some, torch.tensor([start for start, _ in parts] + [stop])).tolist()
        for (start, result), low, high in zip(parts, bounds, bounds[1:], strict=False):
            at = some[low:high] - start
            # Non-finite elements are settled later.
            result[at] = torch.where(finite(result[at]), exact_results[low:high], result[at])


def _settle(formula: RefinedFormula, stack: TensorStack, start: int, result: Tensor) -> None:
    """Recompute a non-finite result in float64, in place.

    Raises:
        WeightspaceError: an input or the result contains NaN or infinity (``stack.finite``).
    """
    chunk = stack.read(start, start + len(result), torch.float64)
    result.copy_(rounded(formula(chunk), result.dtype))
    if stack.finite:
        check_finite(result, stack.name, "the result")
