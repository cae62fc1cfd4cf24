r"""TIES: trim the task vectors, elect a sign per element, average those that agree.

.. math:: b + \lambda\, \frac{\sum_{i \in A} s_i}{\sum_{i \in A} w_i}, \qquad s_i = w_i \operatorname{trim}(x_i - b),
    \quad A = \{i : \operatorname{sign} s_i = \operatorname{sign} \textstyle\sum_j s_j\}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._masked_sum import MaskedSum
from weightspace.merging.methods._parameters import Density, Lambda, NormalizeElected, RescaleL1
from weightspace.merging.methods._registry import JUDGED_CHUNKS, Parameter
from weightspace.merging.methods._rounding import RefinedFormula
from weightspace.merging.methods._sparsify import (
    kept_by,
    kept_count,
    largest_differences,
    magnitudes,
    relative,
    restoring_factors,
    sampled_magnitudes,
)
from weightspace.merging.methods._task_vectors import TaskVectors
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods._topk import Cut, StatisticChunks, largest


def model_cuts(stacks: Sequence[TensorStack], arguments: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the cuts of every tensor when the densities apply to the whole model (``scope: model``).

    Ties are broken in favour of the first tensors, by name.

    Args:
        stacks: all tensors, by name.
        arguments: arguments of the method, one per tensor; the density of the first is used.
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


@merge_method(
    formula="b + λ × the mean of the trimmed differences that agree with the elected sign",
    source="Yadav et al. 2023, https://arxiv.org/abs/2306.01708",
    base="required",
    cost=8,
    stored_chunks=JUDGED_CHUNKS,
    global_pass=model_cuts,
    global_pass_if=("scope", "model"),
)
def ties(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: NormalizeElected = True,
    rescale: RescaleL1 = False,
    scope: Annotated[
        str, Parameter(help="trim per tensor, or over the whole model", choices=("tensor", "model"))
    ] = "tensor",
    cuts: Sequence[Cut] | None = None,
) -> Formula:
    """Return the formula of TIES (algorithm 1), with the sign elected by the weighted sum, as in mergekit.

    At least one element per tensor is kept. ``cuts`` come from the global pass, one per model.
    """
    found = cuts or largest_differences(stack, [kept_count(share, stack.numel) for share in density])
    if normalize:
        weights = relative(weights)
    factors = list(weights)
    if rescale:
        restoring = restoring_factors(stack, lambda vectors: vectors.trim(found, stack.dtype))
        factors = [weight * factor for weight, factor in zip(weights, restoring, strict=True)]

    def fast(chunk: Chunk, close: list[np.ndarray] | None) -> Tensor:
        vectors = TaskVectors(chunk).trim(found, stack.dtype).scale(factors)
        return vectors.elect(weights, normalize=normalize, close=close).add_to_base(lambda_)

    return RefinedFormula(fast, MaskedSum(kept_by(found, stack), factors, weights, lambda_, normalize))


def _joined(parts: Sequence[StatisticChunks], offsets: Sequence[int]) -> StatisticChunks:
    """Return the statistics of several tensors as those of one."""

    def statistics(first: int) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
        for part, offset, end in zip(parts, offsets, offsets[1:], strict=False):
            if first < end:
                for start, values in part(max(0, first - offset)):
                    yield offset + start, values

    return statistics
