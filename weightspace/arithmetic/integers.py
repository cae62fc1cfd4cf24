"""Tensors for which no average is right: integers, training counters and indices.

Nothing lies between two integers, so that a merge copies what all models agree on. Of counters (BatchNorm's
``num_batches_tracked``, ``n_averaged``, ``num_updates``, an optimiser's ``step``) the largest is kept, be they integers
or whole floats: a merge of two networks has seen no fewer steps than either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.dtypes import output_dtype
from weightspace.checkpoints.buffers import is_counter, is_fixed
from weightspace.checkpoints.measure import is_inexact
from weightspace.errors import WeightspaceError


def unaveraged(name: str, tensors: Sequence[Tensor], *, models: Sequence[object] | None = None) -> Tensor | None:
    """Return the merged tensor of a name that has no average, or None for any other.

    Args:
        name: the name of the tensor.
        tensors: one per model, of one shape. Integers and floats may both occur, as the whole numbers of an index may
            be kept in both; the result is of integers then.
        models: how an error calls them; by their numbers from 1 if not given.

    Raises:
        WeightspaceError: the tensors differ, and are no counters.
    """
    if is_counter(name, tensors[0].shape) and (count := largest(tensors)) is not None:
        return count
    if is_fixed(name) or not all(is_inexact(tensor) for tensor in tensors):
        return agreed(name, tensors, models=models)
    return None


def agreed(name: str, tensors: Sequence[Tensor], *, models: Sequence[object] | None = None) -> Tensor:
    """Return a copy of the tensor that all models have under ``name``, integers where one of them has integers.

    Args:
        name: the name of the tensor.
        tensors: one per model, of one shape; differing integer dtypes are promoted.
        models: how an error calls them; by their numbers from 1 if not given.

    Raises:
        WeightspaceError: the tensors differ.
    """
    dtype = output_dtype(tensor.dtype for tensor in tensors)
    called = range(1, len(tensors) + 1) if models is None else models
    first = tensors[0].detach().to(dtype)
    for label, tensor in zip(called, tensors, strict=True):
        value = tensor.detach().to(dtype)
        other = (first != value) | (value.to(tensor.dtype) != tensor)  # the latter where a float is no whole number
        if bool(other.any()):
            raise WeightspaceError(
                f"{name!r} holds {dtype} values, which cannot be averaged, and models {called[0]} and {label} differ "
                f"in {int(other.sum()):,} of the {value.numel():,} looked at. Expected equal ones: were they built "
                "alike?"
            )
    return first.clone()


def largest(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the largest counts, of integers where one of the tensors has integers.

    Args:
        tensors: one per model, of one shape.

    Returns:
        A new tensor, or None where floats are no whole numbers, or more than one number.
    """
    floats = [tensor for tensor in tensors if is_inexact(tensor)]
    if any(tensor.is_complex() or tensor.numel() != 1 or tensor.item() % 1 != 0 for tensor in floats):
        return None
    dtype = output_dtype(tensor.dtype for tensor in tensors)
    order = torch.float64 if dtype.is_floating_point else torch.int64  # unsigned integers have no order in torch
    maximum = tensors[0].detach().to(dtype)
    for tensor in tensors[1:]:
        count = tensor.detach().to(dtype)
        maximum = torch.where(count.to(order) > maximum.to(order), count, maximum)
    return maximum.clone()
