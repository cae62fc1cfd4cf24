"""Positions of a rule's parts in its fused tensor, as boxes of elements that are copied from one to the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from weightspace.checkpoints.metadata import CopiedPiece
from weightspace.checkpoints.name_maps.name_map import INTERLEAVED, Rule
from weightspace.errors import CheckpointError

#: Maximum number of stacked tensors, such as experts.
MOST = 2**14


class Box(NamedTuple):
    """The elements of a part, in the fused tensor and in the part itself; strides and offsets are in elements.

    Attributes:
        shape: shape of the box.
        fused_strides: distance of neighbours along each dimension in the fused tensor.
        fused_offset: the first element in the fused tensor.
        part_strides: as ``fused_strides``, in the part.
        part_shape: shape of the part.
    """

    shape: tuple[int, ...]
    fused_strides: tuple[int, ...]
    fused_offset: int
    part_strides: tuple[int, ...]
    part_shape: tuple[int, ...]

    def joined(self, part: str) -> CopiedPiece:
        """Return the piece of the fused tensor that is read from a part."""
        return CopiedPiece(part, self.shape, self.part_strides, 0, self.fused_strides, self.fused_offset)

    def cut(self, fused: str) -> CopiedPiece:
        """Return the only piece of the part, read from the fused tensor."""
        return CopiedPiece(fused, self.shape, self.fused_strides, self.fused_offset, self.part_strides, 0)


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor in row-major order."""
    return tuple(math.prod(shape[number + 1 :]) for number in range(len(shape)))


def cut_boxes(rule: Rule, shape: tuple[int, ...], config: Mapping[str, Any]) -> list[list[Box]]:
    """Return the boxes of a fused tensor: for each tensor along ``each`` (or for the only one), those of its parts.

    Args:
        rule: the rule.
        shape: shape of the fused tensor.
        config: configuration of the model.

    Raises:
        CheckpointError: the shape does not fit the rule, or the configuration lacks a key.
    """
    stacked = rule.each is not None
    if stacked and not (shape and shape[0] <= MOST):
        raise CheckpointError(f"has the shape {shape}, expected at most {MOST:,} tensors along the first dimension")
    own = _oriented(shape[1:] if stacked else shape, rule)
    sizes, groups = _sizes(rule, config), rule.groups
    if len(own) <= rule.dim:
        raise CheckpointError(f"has the shape {shape}, which has no dimension {rule.dim} to divide")
    width, total = own[rule.dim], sum(sizes)
    count = width // total if groups == INTERLEAVED else _count(groups, config)
    if not width or width % (total * count):
        raise CheckpointError(
            f"has the shape {shape}, and {width} cannot be divided into {count} groups of parts in the ratio "
            f"{':'.join(map(str, sizes))}"
        )
    unit = width // (total * count)
    parts = [(*own[: rule.dim], size * unit * count, *own[rule.dim + 1 :]) for size in sizes]
    numbers = range(shape[0]) if stacked else range(1)
    return [_boxes(rule, shape, parts, count, number) for number in numbers]


def joined_boxes(
    rule: Rule, shapes: Sequence[tuple[int, ...]], number: int, config: Mapping[str, Any]
) -> tuple[tuple[int, ...], list[list[Box]]]:
    """Return the shape of a fused tensor, and the boxes of its parts for each tensor along ``each``.

    Args:
        rule: the rule.
        shapes: shapes of the parts.
        number: number of tensors along ``each``; 1 without it.
        config: configuration of the model.

    Raises:
        CheckpointError: the shapes do not fit each other or the rule, or the configuration lacks a key.
    """
    first = shapes[0]
    others = {(*shape[: rule.dim], *shape[rule.dim + 1 :]) for shape in shapes}
    if len(others) > 1 or any(len(shape) <= rule.dim for shape in shapes):
        raise CheckpointError(f"have the shapes {', '.join(map(str, shapes))}, which cannot be joined along {rule.dim}")
    widths = [shape[rule.dim] for shape in shapes]
    sizes, count = _sizes(rule, config), rule.groups
    groups = widths[0] // sizes[0] if count == INTERLEAVED else _count(count, config)
    units = {width / (size * groups) for width, size in zip(widths, sizes, strict=True)} if groups else {0.5}
    if len(units) > 1 or not units.pop().is_integer():
        raise CheckpointError(
            f"have the sizes {widths}, expected {groups} groups in the ratio {':'.join(map(str, sizes))}"
        )
    own = (*first[: rule.dim], sum(widths), *first[rule.dim + 1 :])
    shape = _oriented(own, rule)
    shape = (number, *shape) if rule.each is not None else shape
    return shape, [_boxes(rule, shape, shapes, groups, index) for index in range(number)]


def _boxes(rule: Rule, shape: tuple[int, ...], parts: Sequence[tuple[int, ...]], groups: int, number: int) -> list[Box]:
    """Return the boxes of the parts of one of the stacked tensors."""
    strides, offset = strides_of(shape), 0
    if rule.each is not None:
        offset, strides = number * strides[0], strides[1:]
    if rule.transpose:
        strides = (*strides[:-2], strides[-1], strides[-2])
    dim, boxes, before = rule.dim, [], 0
    whole = sum(part[dim] for part in parts) // groups
    for part in parts:
        if len(parts) == 1:
            boxes.append(Box(part, strides, offset, strides_of(part), part))
            continue
        own, size = strides_of(part), part[dim] // groups
        boxes.append(
            Box(
                (*part[:dim], groups, size, *part[dim + 1 :]),
                (*strides[:dim], whole * strides[dim], strides[dim], *strides[dim + 1 :]),
                offset + before * strides[dim],
                (*own[:dim], size * own[dim], own[dim], *own[dim + 1 :]),
                part,
            )
        )
        before += size
    return boxes


def _oriented(shape: tuple[int, ...], rule: Rule) -> tuple[int, ...]:
    """Return the shape with swapped dimensions, if the rule transposes; both directions are the same."""
    if not rule.transpose:
        return shape
    if len(shape) < 2:
        raise CheckpointError(f"has the shape {shape}, which cannot be transposed")
    return (*shape[:-2], shape[-1], shape[-2])


def _sizes(rule: Rule, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the relative sizes of the parts."""
    parts = len(rule.sides[1 - rule.fused])
    sizes = [_count(size, config) for size in rule.sizes] or [1] * parts
    return tuple(size // math.gcd(*sizes) for size in sizes)


def _count(value: int | str, config: Mapping[str, Any]) -> int:
    """Return a number, or the value of the first of some keys of the configuration: ``num_key_value_heads|n_head``."""
    if isinstance(value, int):
        return value
    text = config.get("text_config")
    for section in (config, text if isinstance(text, Mapping) else {}):
        for key in value.split("|"):
            found = section.get(key)
            if type(found) is int and found > 0:
                return found
    raise CheckpointError(
        f"depends on {value.replace('|', ' or ')} of the configuration, which config.json does not have"
    )
