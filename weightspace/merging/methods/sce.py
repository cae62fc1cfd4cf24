r"""SCE: select the elements of highest variance, calculate model weights from them, erase minority signs.

.. math:: b + \frac{\sum_{i \in A} w_i \delta_i}{\sum_{i \in A} w_i}, \qquad
    w_i \propto \operatorname{mean}(\delta_i^2), \quad
    A = \{i : \operatorname{sign}\delta_i = \operatorname{sign}\textstyle\sum_j \delta_j\}

with :math:`\delta_i = x_i - b` where the variance over the models is among the largest, and 0 elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._sparsify import runs
from weightspace.merging.methods._sums import total_square
from weightspace.merging.methods._task_vectors import TaskVectors
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods._topk import EVERYTHING, Cut, StatisticChunks, largest


@merge_method(
    formula="b + the differences of highest variance, weighted by their mean squares, that agree in sign",
    source="Wan et al. 2024, https://arxiv.org/abs/2408.07990",
    base="required",
    weighted=False,
    cost=16,
)
def sce(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    select_topk: Annotated[
        float, Parameter(help="fraction of the elements to keep, by highest variance", low=0, high=1)
    ] = 1.0,
) -> Formula:
    """Return the formula of SCE (section 3.2)."""
    cut = EVERYTHING if select_topk >= 1 else _cut(stack, select_topk)
    squares = np.zeros(len(weights))
    for chunk in stack.working_chunks():
        squares += [total_square(vector) for vector in _selected(chunk, cut, stack.dtype).negated]
    whole = float(squares.sum())
    shares = (squares / whole).tolist() if whole > 0 else [1 / len(weights)] * len(weights)

    def formula(chunk: Chunk) -> Tensor:
        vectors = _selected(chunk, cut, stack.dtype)
        signs = vectors.signs()
        return vectors.scale(shares).agreeing_mean(signs, shares).add_to_base(1.0)

    return formula


def _cut(stack: TensorStack, select_topk: float) -> Cut:
    """Return the cut of the variances."""
    models = replace(stack, base=None, finite=False)  # a later pass reads the base, and checks everything
    changed = sum(_count_changed(chunk.models) for chunk in models.chunks())
    (cut,) = largest(
        _variances(models.chunks), [math.floor(select_topk * changed)], [stack.numel], _variances(runs(models))
    )
    return cut


def _variances(chunks: Callable[[int], Iterator[Chunk]]) -> StatisticChunks:
    """Return the variances over the models, in chunks."""

    def statistics(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for chunk in chunks(first):
            yield chunk.start, [_variance(chunk)]

    return statistics


def _variance(chunk: Chunk) -> np.ndarray:
    """Return ``N²`` times the variance over the models of every element; exactly 0 if all are equal.

    That is ``N Σd² − (Σd)²`` with ``d = x_i − x_1``, which avoids cancellation; for dtypes of few bits such as bfloat16
    it is exact, so equal variances compare equal. For two models it is ``d²``.
    """
    first, *others = chunk.tensors
    if len(others) == 1:
        return (others[0] - first).square_().numpy()
    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    for tensor in others:
        other = tensor - first
        total += other
        squares.addcmul_(other, other)
    return squares.mul_(len(chunk.models)).sub_(total.square_()).numpy()


def _count_changed(models: Tensor) -> int:
    """Return the number of elements that differ between the models."""
    first, *others = models.numpy()
    changed = [other != first for other in others]
    return int(np.count_nonzero(functools.reduce(np.logical_or, changed))) if changed else 0


def _selected(chunk: Chunk, cut: Cut, selected: torch.dtype) -> TaskVectors:
    """Return the task vectors, zeroed where the variance is cut off; ``selected`` is the dtype of the variances."""
    kept = None
    if cut != EVERYTHING:
        kept = cut.kept(_variance(replace(chunk, models=chunk.models.to(selected))), chunk.start)
    vectors = TaskVectors(chunk)
    if kept is not None:
        for index in range(len(vectors.negated)):
            vectors.mask(index, kept)
    return vectors
