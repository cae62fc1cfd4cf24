"""Comparison of two checkpoints: names, shapes and dtypes, and the distance between their common tensors.

The relative distance is ‖a − b‖ / ‖a‖ over the float tensors that both have with the same shape; it is infinite if
‖a‖ is zero and b isn't. A tensor tied to the same name in both counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.load_save import StrPath, load_checkpoint
from weightspace.checkpoints.measure import distance, is_inexact, norm
from weightspace.checkpoints.quantised.view import dequantised
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.checkpoints.state_dict import StateDict, dtype_name, tied_names
from weightspace.reprs import brief

T = TypeVar("T")


@dataclass(frozen=True)
class Difference(Generic[T]):
    """A difference in shape or dtype of tensor ``name`` between ``a`` and ``b``."""

    name: str
    a: T
    b: T


@dataclass(frozen=True)
class TensorDistance:
    """The distance of tensor ``name`` between ``a`` and ``b``; ``relative`` is in units of a's norm."""

    name: str
    distance: float
    norm: float
    relative: float


@brief
@dataclass(frozen=True)
class Comparison:
    """The result of comparing two checkpoints.

    Attributes:
        shapes: tensors with the same name but different shapes.
        dtypes: tensors with the same name but different dtypes.
        unequal: integer and bool tensors with the same shape but different values; they have no distance.
        tensors: the distance of each float tensor that both have with the same shape.
        distance, norm: totals over those tensors.
        relative: the distance divided by the norm; NaN if there are none of those tensors, as for unlike models.
    """

    a: str
    b: str
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shapes: tuple[Difference[tuple[int, ...]], ...]
    dtypes: tuple[Difference[str], ...]
    unequal: tuple[str, ...]
    tensors: tuple[TensorDistance, ...]
    distance: float
    norm: float
    relative: float


def compare(path_a: StrPath, path_b: StrPath, *, strip_prefix: str | None = None, key: str | None = None) -> Comparison:
    """Compare the tensors of the same name in two checkpoints; quantised ones by their float32 values.

    Args:
        path_a: as for ``load_checkpoint``, like the options; distances are relative to this one.
        path_b: the other checkpoint.
        strip_prefix: prefix to remove from the names of both.
        key: the entry of a torch file that holds the state dict.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    a, b = (_values(path, strip_prefix, key) for path in (path_a, path_b))
    aligned = [name for name in a if name in b and a[name].shape == b[name].shape]
    floats = [name for name in aligned if is_inexact(a[name]) and is_inexact(b[name])]
    tensors = tuple(_distance(name, a[name], b[name]) for name in floats)
    tied = tied_names(a).items() & tied_names(b).items()
    counted = [tensor for tensor in tensors if all(tensor.name != name for name, _ in tied)]
    total = math.hypot(*(tensor.distance for tensor in counted))
    length = math.hypot(*(tensor.norm for tensor in counted))
    return Comparison(
        a=str(path_a),
        b=str(path_b),
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
        shapes=_differences(a, b, lambda tensor: tuple(tensor.shape)),
        dtypes=_differences(a, b, lambda tensor: dtype_name(tensor.dtype)),
        unequal=tuple(name for name in aligned if name not in floats and not _equal(a[name], b[name])),
        tensors=tensors,
        distance=total,
        norm=length,
        relative=_relative(total, length) if tensors else math.nan,
    )


def _differences(a: StateDict, b: StateDict, trait: Callable[[torch.Tensor], T]) -> tuple[Difference[T], ...]:
    """Return the tensors of the same name that differ in a property."""
    pairs = ((name, trait(a[name]), trait(b[name])) for name in a if name in b)
    return tuple(Difference(name, left, right) for name, left, right in pairs if left != right)


def _distance(name: str, a: torch.Tensor, b: torch.Tensor) -> TensorDistance:
    """Measure the distance of two float tensors of the same shape."""
    apart, length = distance(a, b), norm(a)
    return TensorDistance(name, apart, length, _relative(apart, length))


def _relative(apart: float, length: float) -> float:
    """Return ``apart / length``, with 0 / 0 = 0."""
    if length:
        return apart / length
    return math.inf if apart else 0.0


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of the same shape, not both float, hold the same values."""
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def _values(path: StrPath, strip_prefix: str | None, key: str | None) -> StateDict:
    """Return the tensors of a checkpoint, dequantised if their format is read."""
    contents = dequantised(read_contents(fetched_path(path), key=key))
    if not contents.quantised:
        return load_checkpoint(path, strip_prefix=strip_prefix, key=key)
    state = CheckpointReader(contents).state()
    return {name.removeprefix(strip_prefix or ""): tensor for name, tensor in state.items()}
