r"""SCE: select the elements in which the models differ most, weigh the models by the remainder, erase minorities.

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

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.methods._sparsify import agreeing_mean, back_differences, elected_sign, runs, scale, taken_from
from weightspace.merging.methods._sums import total_square
from weightspace.merging.methods._tensor_stack import Chunk, Formula, Stack
from weightspace.merging.methods._topk import EVERYTHING, Chunks, Cut, largest


def sce(stack: Stack, weights: Sequence[float], *, select_topk: float) -> Formula:
    """Return the formula of SCE.

    Args:
        stack: the models and their base.
        weights: not used.
        select_topk: share of the elements of non-zero variance that is kept; 1 keeps all elements.

    Source:
        Wan et al. 2024, https://arxiv.org/abs/2408.07990, section 3.2.
    """
    cut = EVERYTHING if select_topk >= 1 else _cut(stack, select_topk)
    squares = np.zeros(len(weights))
    for piece in stack.working_pieces():
        squares += [total_square(back) for back in _selected(piece, cut, stack.dtype)]
    whole = float(squares.sum())
    shares = (squares / whole).tolist() if whole > 0 else [1 / len(weights)] * len(weights)

    def formula(piece: Chunk) -> Tensor:
        backs = _selected(piece, cut, stack.dtype)
        sign = elected_sign(backs)
        return taken_from(piece.origin, agreeing_mean(scale(backs, shares), sign, shares), 1.0)

    return formula


def _cut(stack: Stack, select_topk: float) -> Cut:
    """Return where the variances are cut."""
    models = replace(stack, base=None, finite=False)  # the pass after these reads the base, and looks at all
    changed = sum(_count_changed(piece.models) for piece in models.pieces())
    (cut,) = largest(
        _variances(models.pieces), [math.floor(select_topk * changed)], [stack.numel], _variances(runs(models))
    )
    return cut


def _variances(pieces: Callable[[int], Iterator[Chunk]]) -> Chunks:
    """Return the variances over the models, as ``selection`` reads them."""

    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in pieces(first):
            yield piece.start, [_variance(piece)]

    return chunks


def _variance(piece: Chunk) -> np.ndarray:
    """Return ``N²`` times the variance over the models of every element; exactly 0 where all are equal.

    That is ``N Σd² − (Σd)²``, with nothing to cancel as ``d = x_i − x_1``; of few bits, as bfloat16 has, it is exact,
    so that variances which are equal are found so. Of two models it leaves ``d²``.
    """
    first, *others = piece.tensors
    if len(others) == 1:
        return (others[0] - first).square_().numpy()
    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    for tensor in others:
        other = tensor - first
        total += other
        squares.addcmul_(other, other)
    return squares.mul_(len(piece.models)).sub_(total.square_()).numpy()


def _count_changed(models: Tensor) -> int:
    """Return the number of elements in which the models are not all equal."""
    first, *others = models.numpy()
    changed = [other != first for other in others]
    return int(np.count_nonzero(functools.reduce(np.logical_or, changed))) if changed else 0


def _selected(piece: Chunk, cut: Cut, selected: torch.dtype) -> Tensor:
    """Return ``b − x_i`` where the variance is kept, a zero elsewhere; ``selected`` is the dtype of the variances."""
    kept = None
    if cut != EVERYTHING:
        kept = cut.kept(_variance(replace(piece, models=piece.models.to(selected))), piece.start)
    backs = back_differences(piece)
    if kept is not None:
        array = backs.numpy()
        np.multiply(array, kept, out=array)
    return backs
