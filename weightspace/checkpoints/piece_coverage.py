"""Checks that pieces cover a tensor exactly once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightspace.checkpoints.metadata import Piece
from weightspace.errors import CheckpointError


def covering(label: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return the pieces of a tensor by position, without empty ones.

    Args:
        label: the tensor and its file, for errors.
        shape: shape of the tensor.
        pieces: its pieces, all with as many axes as the tensor.

    Raises:
        CheckpointError: a piece lies outside, two pieces overlap, or a part of the tensor is missing.
    """
    for piece in pieces:
        axes = zip(piece.starts, piece.shape, shape, strict=True)
        if any(start + size > whole for start, size, whole in axes):
            raise CheckpointError(
                f"{label}: a piece of shape {piece.shape} at {piece.starts} lies outside the shape {shape}. Is the "
                "checkpoint damaged?"
            )
    kept = sorted((piece for piece in pieces if 0 not in piece.shape), key=lambda piece: piece.starts)
    _check_apart(label, kept)
    found, wanted = sum(math.prod(piece.shape) for piece in kept), math.prod(shape)
    if found != wanted:
        raise CheckpointError(
            f"{label}: its {len(kept):,} pieces have {found:,} of {wanted:,} elements. Did every rank finish writing? "
            "Copy all files of the checkpoint."
        )
    return tuple(kept)


def _check_apart(label: str, pieces: Sequence[Piece]) -> None:
    """Check that no two pieces overlap, along the axis that divides them most."""
    if len(pieces) < 2:
        return
    axes = range(len(pieces[0].starts))
    axis = max(axes, key=lambda axis: len({piece.starts[axis] for piece in pieces}), default=None)
    if axis is None:
        raise CheckpointError(f"{label}: it has {len(pieces):,} pieces, but a single element.")
    ordered = sorted(pieces, key=lambda piece: piece.starts[axis])
    open_pieces: list[Piece] = []
    for piece in ordered:
        open_pieces = [one for one in open_pieces if one.starts[axis] + one.shape[axis] > piece.starts[axis]]
        for other in open_pieces:
            if all(_meet(piece, other, number) for number in axes):
                raise CheckpointError(
                    f"{label}: the pieces at {other.starts} and {piece.starts} overlap. Are they of one checkpoint?"
                )
        open_pieces.append(piece)


def _meet(one: Piece, other: Piece, axis: int) -> bool:
    """Return whether two pieces have an index along an axis in common."""
    ends = one.starts[axis] + one.shape[axis], other.starts[axis] + other.shape[axis]
    return one.starts[axis] < ends[1] and other.starts[axis] < ends[0]
