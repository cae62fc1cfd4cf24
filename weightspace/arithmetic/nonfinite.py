"""NaN and infinity in tensors of any real float dtype: detection, and the result of combining them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.double_word import narrowed


def is_finite(tensor: Tensor) -> bool:
    """Return whether a real tensor contains neither NaN nor infinity."""
    # The sum is one fast pass; since it can also overflow, only the slow check is conclusive.
    narrow = tensor.dtype == torch.float16 or tensor.itemsize == 1
    total = tensor.sum(dtype=torch.float32 if narrow else None).item()
    return math.isfinite(total) or bool(finite(tensor).all())


def finite(tensor: Tensor) -> Tensor:
    """Return which elements of a real tensor are finite; torch doesn't support this for 8-bit floats."""
    return (tensor.to(torch.float32) if tensor.itemsize == 1 else tensor).isfinite()


def replace_nonfinite(out: Tensor, tensors: Sequence[Tensor], coefficients: Sequence[float]) -> None:
    """Set non-finite elements, in place, to the plain sum, or to the common value if all tensors agree.

    Args:
        out: a linear combination, 1-D.
        tensors: the combined tensors, of its length.
        coefficients: one per tensor.
    """
    places = (~finite(out)).nonzero()[:, 0]
    terms = [tensor[places].to(torch.float64) for tensor in tensors]
    equal = ~terms[0].isfinite()
    for other in terms[1:]:
        equal &= (other == terms[0]) | (other.isnan() & terms[0].isnan())
    total = terms[0] * coefficients[0]
    for term, coefficient in zip(terms[1:], coefficients[1:], strict=True):
        total = total + term * coefficient
    total = torch.where(equal, terms[0], total)
    out[places] = narrowed(total, out.dtype) if out.itemsize < 4 else total.to(out.dtype)
