"""Norms, distances and non-finite counts of tensors that may exceed the available memory.

Everything is accumulated in float64, piece by piece, so that a memory-mapped tensor is read once and never held in
full. Integer and bool tensors have no norm here, as they hold counts and indices rather than weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

#: Number of elements converted to float64 at a time: 8 MiB.
_PIECE = 2**20


def is_inexact(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is float or complex, so that it has a norm and can be averaged."""
    return tensor.is_floating_point() or tensor.is_complex()


def norm(tensor: torch.Tensor) -> float:
    """Return the Euclidean norm of a float tensor of any shape (NaN or infinite if an element is)."""
    return math.hypot(*(torch.linalg.vector_norm(piece).item() for piece in _pieces(tensor)))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the Euclidean distance of two float tensors of the same shape, whose dtypes may differ."""
    pairs = zip(_pieces(a), _pieces(b), strict=True)
    return math.hypot(*(torch.linalg.vector_norm(left - right).item() for left, right in pairs))


def count_non_finite(tensor: torch.Tensor) -> int:
    """Return the number of NaN or infinite elements; 0 for integers and bools."""
    if not is_inexact(tensor):
        return 0
    if tensor.dtype in (torch.float32, torch.float64) and bool(tensor.isfinite().all()):
        return 0  # fast path, without a copy
    return sum(int(piece.numel() - piece.isfinite().sum()) for piece in _pieces(tensor))


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the elements in order as float64 (complex128) vectors of at most ``_PIECE`` elements."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    for piece in tensor.detach().reshape(-1).split(_PIECE):
        yield piece.to(wide)
