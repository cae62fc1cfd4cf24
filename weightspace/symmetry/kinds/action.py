"""The action of maps on tensors: units are put in order, change their signs, or are mixed by matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.pattern import Block, Fixed, Units, blocks
from weightspace.symmetry.permutation import outer_place, permute_block

#: Group -> its map, as an ``Element`` has them; the signs of a signed group under ``±`` and its name.
Maps: TypeAlias = Mapping[str, Tensor]

#: Largest number of values that are moved at a time.
_PART = 2**22

#: Precedes the name of a group in the key of its signs.
SIGN = "±"


def act_on(spec: SymmetrySpec, maps: Maps, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor with its units moved; groups without a map stay in place.

    Args:
        spec: of the architecture.
        maps: of some or all groups.
        name: of the tensor.
        tensor: its values.
    """
    axes, groups = spec.axes[name], spec.groups
    result = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for source, target in zip(blocks(tensor, axes, groups), blocks(result, axes, groups), strict=True):
        target.view.copy_(act(spec, maps, source))
    return result


def act_in_place(spec: SymmetrySpec, maps: Maps, name: str, tensor: Tensor) -> None:
    """Move the units of a tensor as ``act_on`` does, in its own memory and part by part."""
    for block in blocks(tensor, spec.axes[name], spec.groups):
        for part in _parts(block):
            part.view.copy_(act(spec, maps, part))


def _parts(block: Block) -> Iterator[Block]:
    """Yield a block in parts along its largest fixed dimension, which nothing moves."""
    fixed = [(size, dim) for dim, size in enumerate(block.view.shape) if not isinstance(block.dims[dim], Units)]
    if not fixed or block.view.numel() <= _PART:
        yield block
        return
    size, dim = max(fixed)
    for view in block.view.split(max(1, size * _PART // block.view.numel()), dim):
        yield Block(view, (*block.dims[:dim], Fixed(view.shape[dim]), *block.dims[dim + 1 :]))


def act(spec: SymmetrySpec, maps: Maps, block: Block) -> Tensor:
    """Return a part of a tensor with its units moved; groups without a map stay in place.

    Integers are orders of units; any other map is a matrix for all units, or an angle for each pair of them.
    """
    orders = {group: value for group, value in maps.items() if group in spec.groups and value.dtype == torch.int64}
    moved = permute_block(block, orders, spec.outer)
    groups = [dim.group if isinstance(dim, Units) else None for dim in block.dims]
    for place, dim in enumerate(block.dims):
        if not isinstance(dim, Units) or dim.group not in maps:
            continue
        above = outer_place(groups, place, spec.outer[dim.group]) if dim.group in spec.outer else None
        if dim.group not in orders:
            moved = _mixed(moved, place, above, as_matrices(maps[dim.group], spec.groups[dim.group]))
        elif dim.signed and SIGN + dim.group in maps:
            moved = _signed(moved, place, above, maps[SIGN + dim.group])
    return moved


def as_matrices(maps: Tensor, units: int) -> Tensor:
    """Return orthogonal maps, or the turns of each pair ``(i, i + units/2)`` by its angle, as matrices."""
    if maps.shape[-1] == units:
        return maps
    cos, sin = torch.diag_embed(maps.cos()), torch.diag_embed(maps.sin())
    return torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)


def _mixed(moved: Tensor, place: int, above: int | None, matrix: Tensor) -> Tensor:
    """Return a block whose units along one dimension are mixed, by one matrix or by one for each outer unit."""
    matrix, last = matrix.to(moved), moved.movedim(place, -1)
    if above is None:
        return (last @ matrix.T).movedim(-1, place)
    above -= above > place
    rows = last.movedim(above, 0)
    turned = rows.reshape(len(rows), -1, rows.shape[-1]) @ matrix.mT
    return turned.view(rows.shape).movedim(0, above).movedim(-1, place)


def _signed(moved: Tensor, place: int, above: int | None, signs: Tensor) -> Tensor:
    """Return a block, in order, with signs along one dimension."""
    signs, shape = signs.to(moved), [1] * moved.ndim
    if above is None:
        shape[place] = len(signs)
        return moved * signs.view(shape)
    shape[above], shape[place] = signs.shape
    return moved * (signs if above < place else signs.T).reshape(shape)
