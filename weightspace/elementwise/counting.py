"""Integer and bool tensors: nothing lies between two of them, so that a merge copies what all agree on.

The exception is BatchNorm's counter ``num_batches_tracked``, a statistic of the training and no weight: two
networks trained for different lengths merge, and the largest count is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.elementwise.precision import output_dtype
from weightspace.errors import WeightspaceError

_COUNTER = "num_batches_tracked"


def agreed(name: str, tensors: Sequence[Tensor], *, models: Sequence[object] | None = None) -> Tensor:
    """Return a copy of the integer or bool tensor that all models have under ``name``.

    Args:
        name: the name of the tensor; BatchNorm's counters may differ.
        tensors: one a model, of one shape; differing integer dtypes are promoted.
        models: how an error calls them; by their numbers from 1 if not given.

    Raises:
        WeightspaceError: the tensors differ.
    """
    dtype = output_dtype(tensor.dtype for tensor in tensors)
    values = [tensor.detach().to(dtype) for tensor in tensors]
    if name.rpartition(".")[2] == _COUNTER:
        return torch.stack(values).amax(dim=0)
    called = range(1, len(values) + 1) if models is None else models
    for label, value in zip(called, values, strict=True):
        if not torch.equal(values[0], value):
            count = int((values[0] != value).sum())
            raise WeightspaceError(
                f"{name!r} holds {dtype} values, which cannot be averaged, and models {called[0]} and {label} "
                f"differ in {count:,} of the {value.numel():,} looked at. Expected equal ones: were they built alike?"
            )
    return values[0].clone()
