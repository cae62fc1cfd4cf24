"""Block sizes of linear combinations. Imports no torch, since planning uses them."""

from __future__ import annotations

#: Maximum number of elements of a block, which share one choice of arithmetic, and of those combined at a time.
_BLOCK, _PIECE = 2**20, 2**17

#: Their lower bounds for very many tensors, below which the overhead of calls would show.
_SMALLEST_BLOCK, _SMALLEST_PIECE = 2**16, 2**13

#: Number of tensors above which blocks shrink, so that those of all tensors together do not grow.
_MANY = 8


def block_size(tensors: int) -> int:
    """Return the number of elements per block of a linear combination of this many tensors.

    The choice of arithmetic depends on it, so it is the same in memory and from files.
    """
    return max(_SMALLEST_BLOCK, _BLOCK >> _halvings(tensors))


def piece_size(tensors: int) -> int:
    """Return the number of elements that are combined at a time, in wider copies of all tensors."""
    return max(_SMALLEST_PIECE, _PIECE >> _halvings(tensors))


def _halvings(tensors: int) -> int:
    return (-(-tensors // _MANY) - 1).bit_length()
