"""Quantisation of merged matrices to FP8 with scales, in the order in which their chunks are computed.

The scale of a block is its largest absolute value over the largest FP8 number, so that no value is out of range; an
element is divided by its scale and rounded to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from weightspace.merging.plan.plan import HELD, Scales

#: The FP8 dtype that is written, its largest number, and the smallest scale, which blocks of zeros have.
FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
_SMALLEST = torch.finfo(torch.float32).tiny

#: Number of elements that are quantised at a time, small enough for their copies to stay in the cache.
_PIECE = 2**17

#: Chunks of a tensor in order: index of the first element, and 1-D elements in float32.
Chunks = Iterator[tuple[int, Tensor]]


def quantised(
    shape: tuple[int, int], scales: Scales, chunks: Callable[[], Chunks]
) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Yield ranges of a quantised matrix with the scales of their blocks.

    Args:
        shape: rows and columns of the matrix, or of all matrices of a stack below each other.
        scales: the blocks that have a scale each; they divide the matrix.
        chunks: returns the chunks of the matrix; called twice for a large matrix with a single scale.

    Yields:
        Index of the first element, FP8 elements, index of the first scale, and scales, float32; all 1-D.
    """
    rows, columns = scales.block
    if scales.block == shape:
        yield from _with_one_scale(rows * columns, chunks)
        return
    start, width = 0, shape[1] // columns
    for elements in grouped(chunks(), rows * shape[1]):
        blocks = elements.view(-1, rows, width, columns)
        codes, scale = torch.empty(blocks.shape, dtype=FP8), torch.empty(len(blocks), 1, width, 1)
        step = max(1, _PIECE // (rows * shape[1]))
        spare = torch.empty(min(step, len(blocks)), rows, width, columns)
        for at in range(0, len(blocks), step):
            part, own = blocks[at : at + step], scale[at : at + step]
            room = spare[: len(part)]
            own.copy_(_scale(torch.abs(part, out=room).amax((1, 3), keepdim=True)))
            codes[at : at + step].copy_(torch.div(part, own, out=room))
        yield start, codes.flatten(), start // (rows * columns), scale.flatten()
        start += len(elements)


def _with_one_scale(count: int, chunks: Callable[[], Chunks]) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Yield ranges of a matrix of ``count`` elements with a single scale; see ``quantised``."""
    held: list[tuple[int, Tensor]] = []
    bounds: list[float] = []
    for start, elements in chunks():
        bounds += [float(bound.abs()) for bound in elements.aminmax()]
        if count <= HELD:
            held.append((start, elements.clone()))
    scale = _scale(torch.tensor(max(bounds, default=0.0)))
    spare = torch.empty(min(_PIECE, count))
    for start, elements in held or chunks():
        codes = torch.empty(len(elements), dtype=FP8)
        for at in range(0, len(elements), _PIECE):
            part = elements[at : at + _PIECE]
            codes[at : at + _PIECE].copy_(torch.div(part, scale, out=spare[: len(part)]))
        yield start, codes, 0, scale.view(1)


def grouped(chunks: Chunks, size: int) -> Iterator[Tensor]:
    """Yield consecutive elements whose number is a multiple of ``size``, not to be modified."""
    held: list[Tensor] = []  # copies, since chunks share their memory
    count = 0
    for _, elements in chunks:
        count += len(elements)
        if count < size:
            held.append(elements.clone())
            continue
        joined = torch.cat([*held, elements]) if held else elements
        count %= size
        yield joined[: len(joined) - count]
        held = [joined[len(joined) - count :].clone()] if count else []


def _scale(largest: Tensor) -> Tensor:
    """Return the scales of blocks with these largest absolute values, which they turn into at most 448 and an ulp."""
    return (largest / _LARGEST).clamp_(min=_SMALLEST)
