"""Operators that pool, resample or rearrange positions."""

from __future__ import annotations

from typing import Any

from weightspace.symmetry.rules.axis_algebra import fixed, freeze, product, split
from weightspace.symmetry.rules.call import Axes, Call, freeze_all, one_shape
from weightspace.symmetry.rules.views import factor


def spatial(call: Call) -> Any:
    """Pool or resample positions; batch and channels pass through."""
    x = call.tensors()[0]
    count = next(int(letter) for letter in call.name if letter.isdigit())
    for axis in x[-count:]:
        freeze(axis)
    shapes = call.shape if isinstance(call.shape, list) else [call.shape]
    results = [(*x[:-count], *(fixed(size) for size in shape[-count:])) for shape in shapes]
    return results if isinstance(call.shape, list) else results[0]


def pixel_shuffle(call: Call) -> Axes:
    """Move blocks of channels into positions."""
    x, block = call["self"], call["upscale_factor"]
    halves = split(x[-3], x[-3].size // block**2)
    if halves is None:
        return freeze_all(call)
    freeze(halves[1], "")
    for axis in x[-2:]:
        freeze(axis)
    return (*x[:-3], halves[0], *(fixed(size) for size in one_shape(call)[-2:]))


def pixel_unshuffle(call: Call) -> Axes:
    """Move blocks of positions into channels: ``c, (h i), (w j)`` becomes ``(c i j), h, w``."""
    x, block = call["self"], call["downscale_factor"]
    height, row = factor(x[-2], [x[-2].size // block, block])
    width, column = factor(x[-1], [x[-1].size // block, block])
    return (*x[:-3], product(x[-3], row, column), height, width)


def unfold(call: Call) -> Axes:
    """Slide a window along one axis; the window becomes the last axis."""
    x, dim = call["self"], call["dimension"] % len(call["self"])
    freeze(x[dim])
    shape = one_shape(call)
    return (*x[:dim], fixed(shape[dim]), *x[dim + 1 :], fixed(shape[-1]))


def columns(call: Call) -> Axes:
    """Arrange the positions of a window next to their channel (im2col)."""
    x, shape = call["self"], one_shape(call)
    for axis in x[-2:]:
        freeze(axis)
    return (*x[:-3], product(x[-3], fixed(shape[-2] // x[-3].size)), fixed(shape[-1]))


def from_columns(call: Call) -> Axes:
    """Sum overlapping windows of each channel (col2im)."""
    x, shape = call["self"], one_shape(call)
    halves = split(x[-2], shape[-3])
    if halves is None:
        return freeze_all(call)
    freeze(halves[1], "")
    freeze(x[-1])
    return (*x[:-2], halves[0], *(fixed(size) for size in shape[-2:]))
