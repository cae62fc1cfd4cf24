r"""Weight norm, :math:`w = g\,v/\lVert v\rVert`, merged as the weight that it stands for.

Averages of ``g`` and of ``v`` make no average of ``w``: directions are averaged by lengths that mean nothing (training
lets :math:`\lVert v\rVert` grow, and the network does not depend on it), and the mean magnitude is longer than the mean
weight. A merge is therefore that of the weights :math:`w_i`, by whatever method, and is written as torch writes a
weight to which weight norm is applied: :math:`v = w`, :math:`g = \lVert w\rVert`. A slice (what has one norm, the
weights of a unit mostly) that comes out as that of a model keeps this model's ``g`` and ``v`` bit for bit, so that
copies merge to the copy and a line ends in its ends; of a slice that comes out as zero, which has no direction, the
first model's ``v`` is kept beside :math:`g = 0`.

Everything is in float64 and goes by ranges of elements, so that tensors may lie in files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from weightspace.errors import WeightspaceError

#: Elements taken at a time.
PIECE = 2**17


class Elements(Protocol):
    """A tensor of any float dtype, read by range of its elements in row-major order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D; not to be modified."""
        ...


#: Index of a first element, and elements from there on, 1-D.
Piece: TypeAlias = "tuple[int, Tensor]"


class Held:
    """A tensor in memory as ``Elements``."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tuple(tensor.shape)
        self._flat = tensor.detach().reshape(-1)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a view of the elements."""
        return self._flat[start:stop]


class Slices:
    """The parts of a weight that have one norm each: all elements, or those at one index of an axis.

    Args:
        shape: of the weight.
        magnitude: shape of the norms: 1 along every axis that a norm runs over, or ``()``.
    """

    def __init__(self, shape: Sequence[int], magnitude: Sequence[int]) -> None:
        axis = next((axis for axis, size in enumerate(magnitude) if size != 1), None)
        self.count = 1 if axis is None else shape[axis]
        self._stride = math.prod(shape) or 1 if axis is None else math.prod(shape[axis + 1 :])

    def of(self, start: int, stop: int) -> Tensor:
        """Return the number of the slice that each of a range of elements belongs to."""
        return torch.arange(start, stop).div_(self._stride, rounding_mode="floor").remainder_(self.count)

    def norms(self, pieces: Iterable[Piece]) -> Tensor:
        """Return the norms of all slices, float64 of shape ``(count,)``."""
        squares = torch.zeros(self.count, dtype=torch.float64)
        for start, elements in pieces:
            squares.index_add_(0, self.of(start, start + len(elements)), elements.to(torch.float64).square())
        return squares.sqrt_()


class EffectiveWeight:
    """The weight of a magnitude and a direction, as ``Elements`` in float64.

    Attributes:
        magnitude: ``g``.
        direction: ``v``.
        slices: what has one norm.

    Raises:
        WeightspaceError: on reading, a slice of the direction is zero, and has no weight (``finite``).
    """

    dtype = torch.float64

    def __init__(
        self, magnitude: Elements, direction: Elements, *, name: str, model: object = "", finite: bool = True
    ) -> None:
        self.magnitude, self.direction = magnitude, direction
        self.shape = tuple(direction.shape)
        self.slices = Slices(self.shape, magnitude.shape)
        self._name, self._model, self._finite = name, model, finite

    def read(self, start: int, stop: int) -> Tensor:
        """Return ``g v/‖v‖``."""
        return self.direction.read(start, stop).to(torch.float64) * self._factors[self.slices.of(start, stop)]

    def magnitudes(self) -> Tensor:
        """Return ``g`` in float64 of shape ``(count,)``."""
        return self.magnitude.read(0, self.slices.count).to(torch.float64)

    @cached_property
    def _factors(self) -> Tensor:
        norms = self.slices.norms(pieces_of(self.direction))
        if self._finite and bool((norms == 0).any()):
            holder = f" of {self._model}" if self._model else ""
            raise WeightspaceError(
                f"{self._name!r}{holder} is zero in {int((norms == 0).sum()):,} of its {len(norms):,} slices, of which "
                "weight norm makes NaN. Expected a direction for each. Is the checkpoint damaged?"
            )
        return self.magnitudes() / norms


@dataclass(frozen=True)
class Split:
    """A merged weight in magnitude and direction.

    Attributes:
        models: the weights that were merged.
        norms: of the slices of the result, float64 of shape ``(count,)``.
        owners: number of the model whose slice each one is, -1 for none; int64 of shape ``(count,)``.
    """

    models: Sequence[EffectiveWeight]
    norms: Tensor
    owners: Tensor

    def magnitudes(self) -> Tensor:
        """Return ``g``, float64 of shape ``(count,)``."""
        magnitudes = self.norms.clone()
        for number, model in enumerate(self.models):
            magnitudes = torch.where(self.owners == number, model.magnitudes(), magnitudes)
        return magnitudes

    def direction(self, start: int, merged: Tensor) -> Tensor:
        """Return ``v`` for a range of elements of the merged weight, in float64."""
        slices = self.models[0].slices.of(start, start + len(merged))
        owners = self.owners[slices]
        kept = torch.where((self.norms[slices] == 0) & (owners < 0), 0, owners)
        direction = merged
        for number in kept.unique().tolist():
            if number >= 0:
                own = self.models[number].direction.read(start, start + len(merged)).to(torch.float64)
                direction = torch.where(kept == number, own, direction)
        return direction


def split(models: Sequence[EffectiveWeight], merged: Callable[[], Iterable[Piece]]) -> Split:
    """Return how a merged weight is divided into magnitude and direction.

    Args:
        models: the weights that were merged, one per model.
        merged: gives the pieces of the result in order, in float64.
    """
    slices = models[0].slices
    squares = torch.zeros(slices.count, dtype=torch.float64)
    same = torch.ones(len(models), slices.count, dtype=torch.bool)
    for start, elements in merged():
        numbers = slices.of(start, start + len(elements))
        squares.index_add_(0, numbers, elements.square())
        for row, model in zip(same, models, strict=True):
            own = model.read(start, start + len(elements))
            other = (own != elements) & ~(own.isnan() & elements.isnan())
            row[numbers[other]] = False
    owners = torch.where(same.any(0), same.int().argmax(0), -1)
    return Split(models, squares.sqrt_(), owners)


def pieces_of(elements: Elements) -> Iterator[Piece]:
    """Yield all elements in order."""
    count = math.prod(elements.shape)
    for start in range(0, count, PIECE):
        yield start, elements.read(start, min(start + PIECE, count))


def slice_norms(weight: Tensor, magnitude: Sequence[int]) -> Tensor:
    """Return the norms of the slices of a weight, differentiable in it, of the shape of its magnitude."""
    axes = [axis for axis, size in enumerate(magnitude) if size == 1]
    if not len(magnitude):
        return torch.linalg.vector_norm(weight)
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=True) if axes else weight.abs()


def weight_and_gradient(magnitude: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the weight of a pair with gradients, and the gradient of the loss by it.

    :math:`\partial L/\partial w = \frac{\lVert v\rVert}{g}\,\partial L/\partial v + \partial L/\partial g\,
    v/\lVert v\rVert`, of which the part across ``v`` is lost where ``g`` is zero.

    Source:
        Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868, equation 3, solved for the gradient by ``w``.
    """
    if magnitude.grad is None or direction.grad is None:
        raise WeightspaceError("A pair of weight norm has no gradient. Expected a loss that depends on it.")
    norms = slice_norms(direction, magnitude.shape)
    unit = direction / norms
    across = torch.where(magnitude != 0, norms / magnitude, 0.0)
    return magnitude * unit, across * direction.grad + magnitude.grad * unit
