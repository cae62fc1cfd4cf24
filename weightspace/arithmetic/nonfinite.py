"""NaN and infinity in tensors of any real float dtype: finding them, and the result of combining them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.arithmetic.double_word import narrowed


def is_finite(tensor: Tensor) -> bool:
    """Return whether a real tensor holds no NaN and no infinity."""
    # The sum is one fast pass; it can also overflow, so that only the slow check has the last word.
    narrow = tensor.dtype == torch.float16 or tensor.itemsize == 1
    total = tensor.sum(dtype=torch.float32 if narrow else None).item()
    return math.isfinite(total) or bool(finite(tensor).all())


def finite(tensor: Tensor) -> Tensor:
    """Return which elements of a real tensor are neither NaN nor infinite; torch has no answer for 8 bits."""
    return (tensor.to(torch.float32) if tensor.itemsize == 1 else tensor).isfinite()


def replace_nonfinite(out: Tensor, tensors: Sequence[Tensor], coefficients: Sequence[float]) -> None:
    """Set what isn't finite, in place, to the plain sum, or where all tensors hold the same, to that.

    Args:
        out: a linear combination, 1-D.
        tensors: what was combined, of its length.
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
