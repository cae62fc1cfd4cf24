"""The float formats of torch: their bits and exponents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from weightspace.errors import WeightspaceError

#: Significand bits, and the exponents of the smallest normal numbers.
_FORMATS = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float8_e4m3fn: (4, -6),
    torch.float8_e4m3fnuz: (4, -7),
    torch.float8_e5m2: (3, -14),
    torch.float8_e5m2fnuz: (3, -15),
}


def significand_bits(dtype: torch.dtype) -> int:
    """Return the number of significand bits of a real float dtype."""
    return _FORMATS[dtype][0]


def least_exponent(dtype: torch.dtype) -> int:
    """Return the exponent of the smallest normal number of a real float dtype."""
    return _FORMATS[dtype][1]


def output_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype of a merge: the common one, or the promotion of different ones.

    If floats meet integers, both contain whole numbers (see ``counting``), and the result has integers.
    """
    distinct = list(dict.fromkeys(dtypes))
    integers = [dtype for dtype in distinct if not (dtype.is_floating_point or dtype.is_complex)]
    return _joint_integers(integers) if integers else reduce(torch.promote_types, distinct)


def _joint_integers(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the integer dtype that can hold all values; torch has no promotion rule for the larger unsigned ones."""
    if not set(dtypes) & {torch.uint16, torch.uint32, torch.uint64} or len(dtypes) == 1:
        return reduce(torch.promote_types, dtypes)
    signed = [dtype.itemsize for dtype in dtypes if dtype.is_signed]
    unsigned = [dtype.itemsize for dtype in dtypes if not dtype.is_signed]
    size = max([*signed, *(2 * size if signed else size for size in unsigned)])
    if size > 8:
        raise WeightspaceError(f"No integer dtype can hold the values of {' and '.join(map(str, dtypes))} together.")
    return getattr(torch, f"{'' if signed else 'u'}int{8 * size}")


def compute_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype to compute in: the promotion of the float dtypes, at least float32."""
    # float8 has no promotion rules of its own; float32 can represent all its values.
    wide = (torch.float32 if dtype.itemsize == 1 else dtype for dtype in dtypes)
    return reduce(torch.promote_types, wide, torch.float32)


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the dtype to compute in; tensors already in it are returned without a copy."""
    dtype = compute_dtype(tensor.dtype for tensor in tensors)
    return [tensor.detach().to(dtype) for tensor in tensors]


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the components of a complex dtype; other dtypes are returned unchanged."""
    return dtype.to_real() if dtype.is_complex else dtype
