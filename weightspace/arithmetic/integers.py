"""Tensors that must not be averaged: integers, training counters and indices.

Integers can't be averaged, so a merge copies values on which all models agree. For counters (BatchNorm's
``num_batches_tracked``, ``n_averaged``, ``num_updates``, an optimiser's ``step``), integers or whole floats, the
largest is kept: a merge of two networks has seen at least as many steps as either.
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
    """Return the merged tensor of a name that must not be averaged, or None for any other.

    Args:
        name: name of the tensor.
        tensors: one per model, of one shape. Integers and floats may be mixed, since whole numbers of an index may be
            stored as either; the result then has integers.
        models: names of the models in errors; by default their numbers from 1.

    Raises:
        WeightspaceError: the tensors differ and aren't counters.
    """
    if is_counter(name, tensors[0].shape) and (count := largest(tensors)) is not None:
        return count
    if is_fixed(name) or not all(is_inexact(tensor) for tensor in tensors):
        return agreed(name, tensors, models=models)
    return None


def agreed(name: str, tensors: Sequence[Tensor], *, models: Sequence[object] | None = None) -> Tensor:
    """Return a copy of the tensor that all models have under ``name``, with integers if any of them has integers.

    Args:
        name: name of the tensor.
        tensors: one per model, of one shape; different integer dtypes are promoted.
        models: names of the models in errors; by default their numbers from 1.

    Raises:
        WeightspaceError: the tensors differ.
    """
    dtype = output_dtype(tensor.dtype for tensor in tensors)
    called = range(1, len(tensors) + 1) if models is None else models
    first = tensors[0].detach().to(dtype)
    for label, tensor in zip(called, tensors, strict=True):
        value = tensor.detach().to(dtype)
        other = (first != value) | (value.to(tensor.dtype) != tensor)  # the latter if a float isn't a whole number
        if bool(other.any()):
            raise WeightspaceError(
                f"{name!r} holds {dtype} values, which cannot be averaged, and models {called[0]} and {label} differ "
                f"in {int(other.sum()):,} of {value.numel():,} elements. Expected equal values: were they built "
                "alike?"
            )
    return first.clone()


def largest(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the largest counts, with integers if any of the tensors has integers.

    Args:
        tensors: one per model, of one shape.

    Returns:
        A new tensor, or None if floats aren't whole numbers, or have more than one element.
    """
    floats = [tensor for tensor in tensors if is_inexact(tensor)]
    if any(tensor.is_complex() or tensor.numel() != 1 or tensor.item() % 1 != 0 for tensor in floats):
        return None
    dtype = output_dtype(tensor.dtype for tensor in tensors)
    order = torch.float64 if dtype.is_floating_point else torch.int64  # torch can't compare unsigned integers
    maximum = tensors[0].detach().to(dtype)
    for tensor in tensors[1:]:
        count = tensor.detach().to(dtype)
        maximum = torch.where(count.to(order) > maximum.to(order), count, maximum)
    return maximum.clone()
