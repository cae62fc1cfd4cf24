"""Task vectors of one chunk: trim, scale, elect a sign, sum, add to the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._tensor_stack import Chunk
from weightspace.merging.methods._topk import Cut

#: A sum of votes below this fraction of the largest vote is rounding.
_CLOSE = 2.0**-18


@dataclass
class TaskVector:
    r"""A merged task vector of one chunk.

    Attributes:
        base: the base, ``b``.
        negated: ``−τ``, of the same shape.
    """

    base: Tensor
    negated: Tensor

    def add_to_base(self, factor: float) -> Tensor:
        """Return ``b + factor · τ`` in the memory of ``τ``; bit-identical to ``b`` where ``τ`` is zero."""
        scaled = torch.add(torch.zeros((), dtype=self.negated.dtype), self.negated, alpha=factor, out=self.negated)
        return torch.sub(self.base, scaled, out=scaled)  # the zero added makes +0.0 of −0.0


class TaskVectors:
    r"""The task vectors :math:`\tau_i = x_i - b` of all models in one chunk.

    They are stored as ``b − x_i`` in the memory of the models: where nothing differs, that is ``+0.0``, and ``b −
    (+0.0)`` is bit-identical to ``b``. Edits are in place and return the task vectors.

    Attributes:
        base: the base, ``b``.
        start: row-major index of the first element.
        negated: ``b − x_i``, with the models along dim 0.
    """

    def __init__(self, chunk: Chunk) -> None:
        self.base = chunk.origin
        self.start = chunk.start
        self.negated = torch.sub(chunk.origin, chunk.models, out=chunk.models)

    def magnitudes(self) -> Tensor:
        """Return ``|τ_i|`` in the memory of the task vectors."""
        return self.negated.abs_()

    def absolute_sums(self) -> np.ndarray:
        """Return ``Σ |τ_i|`` per model, in float64."""
        return row_sums(self.negated.abs().flatten(1)).numpy()

    def trim(self, cuts: Sequence[Cut], selected: torch.dtype) -> TaskVectors:
        """Zero the elements whose magnitude is cut off.

        Args:
            cuts: cuts of the magnitudes, one per model.
            selected: the dtype in which the cuts were computed; magnitudes are rounded to it for comparison.
        """
        _trim(self.negated, cuts, self.start, selected)
        return self

    def trim_outside(self, lower: Sequence[Cut], upper: Sequence[Cut], selected: torch.dtype) -> TaskVectors:
        """Zero elements below one cut of the magnitudes, and those kept by another one; arguments as in ``trim``."""
        kept = _trim(self.negated.clone(), lower, self.start, selected)
        self.negated = kept - _trim(self.negated, upper, self.start, selected)
        return self

    def mask(self, index: int, kept: np.ndarray) -> None:
        """Zero the elements of one model where a mask of 0 and 1, of the same shape, is 0."""
        array = self.negated[index].numpy()
        np.multiply(array, kept.reshape(array.shape), out=array)

    def scale(self, factors: Sequence[float]) -> TaskVectors:
        """Multiply each model's task vector by its factor."""
        for vector, factor in zip(self.negated, factors, strict=True):
            if factor != 1:
                vector.mul_(factor)
        return self

    def sum(self) -> TaskVector:
        """Return ``Σ τ_i``."""
        return TaskVector(self.base, summed(self.negated))

    def mean(self, weights: Sequence[float]) -> TaskVector:
        """Return the weighted mean of the elements that aren't zero; a sum of weights of 0 counts as 1.

        Args:
            weights: weights of the models, by which the task vectors were scaled.
        """
        total = summed(self.negated)
        return TaskVector(self.base, _mean_of(total, self.negated.abs_(), weights))

    def elect(self, weights: Sequence[float], *, normalize: bool, close: list[np.ndarray] | None = None) -> TaskVector:
        """Return the sum, or weighted mean, of the elements that agree with the elected sign.

        Args:
            weights: weights of the models, by which the task vectors were scaled.
            normalize: divide by the weights of those that agree; a sum of 0 counts as 1. Zeros never agree.
            close: receives positions where the votes nearly cancel.

        Source:
            Yadav et al. 2023, https://arxiv.org/abs/2306.01708, section 3.
        """
        votes = summed(self.negated)
        sign = _sign(votes)
        agreeing = self.negated.mul_(sign).clamp_min_(0)
        result = summed(agreeing, out=None if normalize else agreeing[0])
        if close is not None:
            close.append(votes.abs_().mul_(1 / _CLOSE).numpy() < result.numpy())
        if normalize:
            result = _mean_of(result, agreeing, weights)
        return TaskVector(self.base, result.mul_(sign))

    def signs(self) -> Tensor:
        """Return the elected sign of ``−τ``: 1 if ``Σ τ_i`` is below 0, otherwise −1, an increase of the weight."""
        return _sign(summed(self.negated))

    def agreeing_mean(self, signs: Tensor, weights: Sequence[float]) -> TaskVector:
        """Return the weighted mean of the elements with the given signs of ``−τ``; arguments as in ``elect``."""
        agreeing = self.negated.mul_(signs).clamp_min_(0)
        return TaskVector(self.base, _mean_of(summed(agreeing), agreeing, weights).mul_(signs))


def summed(terms: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """Return the sum of tensors (of a single tensor, along dim 0) in order, in ``out`` if that is the first."""
    first, *others = terms
    if not others:
        return first.clone() if out is None else first
    total = torch.add(first, others[0], out=out)
    for term in others[1:]:
        total += term
    return total


def _trim(vectors: Tensor, cuts: Sequence[Cut], start: int, selected: torch.dtype) -> Tensor:
    """Zero in place the elements of ``(N, n)`` whose magnitude is cut off."""
    for vector, cut in zip(vectors, cuts, strict=True):
        bound = cut.position - start
        if cut.value == -math.inf:
            continue
        if 0 < bound < len(vector):
            array = vector.numpy()
            np.multiply(array, cut.kept(np.abs(vector.to(selected).numpy()), start), out=array)
            continue
        threshold = _threshold(cut.value, bound > 0, selected, vector.dtype)
        if threshold >= 0:
            torch.hardshrink(vector, threshold, out=vector)
    return vectors


def _threshold(value: float, kept: bool, selected: torch.dtype, dtype: torch.dtype) -> float:
    """Return the largest number of ``dtype`` that is dropped.

    Args:
        value: where magnitudes are cut.
        kept: keep those that equal it.
        selected: the dtype in which they are cut.
        dtype: of the magnitudes, which are rounded to ``selected`` first.
    """
    narrow = np.float32 if selected == torch.float32 else np.float64
    dropped = np.nextafter(narrow(value), narrow(-np.inf)) if kept else narrow(value)
    if dtype == selected:
        return float(dropped)
    # Halfway to the next number rounds to the even one of the two.
    half = (float(dropped) + float(np.nextafter(dropped, narrow(np.inf)))) / 2
    return half if narrow(half) == dropped else math.nextafter(half, -math.inf)


def _sign(total: Tensor) -> Tensor:
    """Return 1 where a sum is above 0, otherwise −1, in place."""
    return torch.threshold(total, 0.0, -1.0).sign_()


def _mean_of(total: Tensor, agreeing: Tensor, weights: Sequence[float]) -> Tensor:
    """Divide a sum in place by the weights of its non-zero terms; the terms are overwritten."""
    first, *others = agreeing.sign_()
    divisor = first.mul_(weights[0])
    for other, weight in zip(others, weights[1:], strict=True):
        divisor.add_(other, alpha=weight)
    return total.div_(_nonzero(divisor, weights))


def _nonzero(divisor: Tensor, weights: Sequence[float]) -> Tensor:
    """Return sums of weights with each 0 replaced: by 1, or, where the dividend is 0 as well, by any number."""
    if min(weights) >= 0:  # a sum of 0 divides nothing but 0
        least = min((weight for weight in weights if weight > 0), default=1.0) / 2
        return divisor.clamp_min_(max(least, torch.finfo(divisor.dtype).tiny))
    numbers = divisor.numpy()
    numbers += numbers == 0
    return divisor
