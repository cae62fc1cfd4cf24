"""Sizes of the ranges of elements that linear combinations work on; no torch is imported, since plans use them."""

from __future__ import annotations

#: Most elements that are judged together, and that are combined at a time.
_BLOCK, _PIECE = 2**20, 2**17

#: The same of few elements of very many tensors, at which the overhead of calls begins to show.
_SMALLEST_BLOCK, _SMALLEST_PIECE = 2**16, 2**13

#: Number of tensors from which on ranges are smaller, so that those of all tensors together are not larger.
_MANY = 8


def block_size(tensors: int) -> int:
    """Return the number of elements of a linear combination of so many tensors that are read and judged together.

    The choice of the arithmetic depends on it, so it is the same in memory and from files.
    """
    return max(_SMALLEST_BLOCK, _BLOCK >> _halvings(tensors))


def piece_size(tensors: int) -> int:
    """Return the number of elements that are combined at a time, in wide copies of all tensors."""
    return max(_SMALLEST_PIECE, _PIECE >> _halvings(tensors))


def _halvings(tensors: int) -> int:
    return (-(-tensors // _MANY) - 1).bit_length()
