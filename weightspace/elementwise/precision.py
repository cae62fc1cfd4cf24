"""What merges are computed in and rounded to: float32 at least, rounded once to the dtype of the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor


def output_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype of a merge: the common one, or the promotion of differing ones."""
    return reduce(torch.promote_types, dtypes)


def compute_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype to compute in: the promotion of the float dtypes, float32 at least."""
    # float8 has no promotion rules of its own; float32 holds every value of it.
    wide = (torch.float32 if dtype.itemsize == 1 else dtype for dtype in dtypes)
    return reduce(torch.promote_types, wide, torch.float32)


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the dtype to compute in; one that is in it already is returned itself, not a copy."""
    dtype = compute_dtype(tensor.dtype for tensor in tensors)
    return [tensor.detach().to(dtype) for tensor in tensors]


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the parts of a complex dtype; any other dtype as it is."""
    return dtype.to_real() if dtype.is_complex else dtype
