r"""Weight norm, :math:`w = g\,v/\lVert v\rVert`, merged by its effective weight.

Averaging ``g`` and ``v`` separately doesn't average ``w``: directions would be weighted by meaningless lengths
(training lets :math:`\lVert v\rVert` grow, and the network doesn't depend on it), and the mean magnitude exceeds the
norm of the mean weight. A merge by any method therefore uses the weights :math:`w_i`, and its result is written as
torch does when it applies weight norm: :math:`v = w`, :math:`g = \lVert w\rVert`. If a slice (the elements sharing a
norm, usually the weights of a unit) equals that of a model, this model's ``g`` and ``v`` are kept bit for bit, so that
copies merge to the copy and a line ends at its endpoints; for a zero slice, which has no direction, the first model's
``v`` is kept with :math:`g = 0`.

Everything is computed in float64 and by ranges of elements, so that tensors may stay in files.
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

#: Number of elements processed at a time.
PIECE = 2**17


class Elements(Protocol):
    """A tensor of any float dtype, read by ranges of its elements in row-major order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D; not to be modified."""
        ...


#: Index of a first element, and the elements from there on, 1-D.
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
    """The parts of a weight with one norm each: all elements, or those at one index of an axis.

    Args:
        shape: shape of the weight.
        magnitude: shape of the norms: 1 along every axis that a norm runs over, or ``()``.
    """

    def __init__(self, shape: Sequence[int], magnitude: Sequence[int]) -> None:
        axis = next((axis for axis, size in enumerate(magnitude) if size != 1), None)
        self.count = 1 if axis is None else shape[axis]
        self._stride = math.prod(shape) or 1 if axis is None else math.prod(shape[axis + 1 :])

    def of(self, start: int, stop: int) -> Tensor:
        """Return the slice index of each element in a range."""
        return torch.arange(start, stop).div_(self._stride, rounding_mode="floor").remainder_(self.count)

    def norms(self, pieces: Iterable[Piece]) -> Tensor:
        """Return the norms of all slices, float64 of shape ``(count,)``."""
        squares = torch.zeros(self.count, dtype=torch.float64)
        for start, elements in pieces:
            squares.index_add_(0, self.of(start, start + len(elements)), elements.to(torch.float64).square())
        return squares.sqrt_()


class EffectiveWeight:
    """The effective weight of a magnitude and a direction, as ``Elements`` in float64.

    Attributes:
        magnitude: ``g``.
        direction: ``v``.
        slices: the parts with one norm each.

    Raises:
        WeightspaceError: when read, if a slice of the direction is zero, and has no weight (``finite``).
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
                f"{self._name!r}{holder} is zero in {int((norms == 0).sum()):,} of its {len(norms):,} slices, where "
                "weight norm gives NaN. Expected a direction for each. Is the checkpoint damaged?"
            )
        return self.magnitudes() / norms


@dataclass(frozen=True)
class Split:
    """A merged weight split into magnitude and direction.

    Attributes:
        models: the merged weights.
        norms: norms of the slices of the result, float64 of shape ``(count,)``.
        owners: index of the model that each slice is equal to, -1 for none; int64 of shape ``(count,)``.
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
    """Split a merged weight into magnitude and direction.

    Args:
        models: the merged weights, one per model.
        merged: returns the pieces of the result in order, in float64.
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
    """Return the norms of the slices of a weight, differentiable in it, with the shape of its magnitude."""
    axes = [axis for axis, size in enumerate(magnitude) if size == 1]
    if not len(magnitude):
        return torch.linalg.vector_norm(weight)
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=True) if axes else weight.abs()


def weight_and_gradient(magnitude: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the weight of a pair with gradients, and the gradient of the loss with respect to it.

    :math:`\partial L/\partial w = \frac{\lVert v\rVert}{g}\,\partial L/\partial v + \partial L/\partial g\,
    v/\lVert v\rVert`, whose component orthogonal to ``v`` is lost if ``g`` is zero.

    Source:
        Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868, equation 3, solved for the gradient with respect to
        ``w``.
    """
    if magnitude.grad is None or direction.grad is None:
        raise WeightspaceError("A pair of weight norm has no gradient. Expected a loss that depends on it.")
    norms = slice_norms(direction, magnitude.shape)
    unit = direction / norms
    across = torch.where(magnitude != 0, norms / magnitude, 0.0)
    return magnitude * unit, across * direction.grad + magnitude.grad * unit
