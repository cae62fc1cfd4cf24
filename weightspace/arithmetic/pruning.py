"""Pruning masks of ``torch.nn.utils.prune``, which networks must share to be combined.

A pruned weight is stored as ``w = w_orig · m``. With a common mask, the mean of the ``w_orig`` gives the mean of the
weights; with different masks it doesn't, since the mean of products isn't the product of means. Merge methods read
``w``, not ``w_orig``, whose masked elements are unused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.weight_norm import Elements
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import Parametrizations
from weightspace.errors import WeightspaceError


class PrunedTensor:
    """The elements of a pruned tensor: zero where the mask is zero.

    Args:
        original: ``w_orig``.
        mask: the mask, of the same shape.
        dtype: dtype of the original.
    """

    def __init__(self, original: Elements, mask: Elements, dtype: torch.dtype) -> None:
        self.dtype, self.shape = dtype, tuple(original.shape)
        self._original, self._mask = original, mask

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements of a range, 1-D."""
        elements = self._original.read(start, stop)
        return elements.where(self._mask.read(start, stop) != 0, torch.zeros((), dtype=elements.dtype))


def check_masks(
    states: Sequence[StateDict], parametrizations: Parametrizations, *, models: Sequence[object] | None = None
) -> None:
    """Check that networks are pruned by the same masks.

    Args:
        states: state dicts with the same names and shapes.
        parametrizations: parametrizations of the architecture.
        models: names of the networks in errors; by default their numbers from 1.

    Raises:
        WeightspaceError: two masks differ.
    """
    called = [f"model {number}" for number in range(1, len(states) + 1)] if models is None else models
    for mask in parametrizations.masks.values():
        for state, label in zip(states[1:], called[1:], strict=True):
            check_same_mask(mask, states[0][mask], state[mask], models=(called[0], label))


def check_same_mask(name: str, first: Tensor, other: Tensor, *, models: tuple[object, object]) -> None:
    """Check that two masks of one shape are equal, whether stored as floats, integers or bools.

    Raises:
        WeightspaceError: they differ.
    """
    differing = first.detach().cpu().double() != other.detach().cpu().double()
    if bool(differing.any()):
        pruned = name.removesuffix("_mask")
        raise WeightspaceError(
            f"The pruning masks {name!r} of {models[0]} and {models[1]} differ in {int(differing.sum()):,} of "
            f"{differing.numel():,} places, and only networks with the same masks can be combined. To combine the "
            f"pruned weights themselves, call torch.nn.utils.prune.remove for {pruned!r} and every other pruned tensor "
            "of every model first."
        )
