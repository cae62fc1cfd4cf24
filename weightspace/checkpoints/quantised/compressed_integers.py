"""Integers of compressed-tensors: 4 or 8 bits packed along the inputs (pack-quantized), or one byte each.

The value of an element is its integer, minus a zero point if the quantisation is asymmetric, times a scale. There is
one of each per matrix, row, or group within a row. ``weight_g_idx`` names the group of each column; without it, groups
are consecutive. Packed integers are stored with an offset of half their range; so are their zero points, which are
packed along the outputs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo
from weightspace.checkpoints.quantised.companions import activation_scales, is_understood
from weightspace.checkpoints.quantised.format import Format, Found, Settings, Stored
from weightspace.checkpoints.quantised.integers import BITS, SCALES, is_grouped_by, numbers
from weightspace.checkpoints.quantised.panels import PanelReader, panel_bytes
from weightspace.checkpoints.quantised.scaling import Grid, ScaledTensor, float32, multiply
from weightspace.checkpoints.quantised.settings import described_weights, transforms
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

_METHOD = "compressed-tensors"

#: Last parts of the names of tensors that a matrix may also have.
_ZEROS, _ORDER = "weight_zero_point", "weight_g_idx"
_FURTHER = frozenset({_ZEROS, _ORDER})

#: Values of ``actorder`` for groups that are not consecutive.
_BY_GROUP = ("group", "dynamic", True)


def find(stored: Stored) -> list[Found]:
    """Return the integer matrices of a model whose configuration names compressed-tensors."""
    if stored.settings.method != _METHOD:
        return []
    found = [_packed(stored, parts) for parts in stored.modules.values() if "weight_packed" in parts]
    found += [_bytes(stored, parts) for parts in stored.modules.values() if "weight" in parts]
    return [own for own in found if own is not None]


def _packed(stored: Stored, parts: Mapping[str, str]) -> Found | None:
    """Return the packed matrix of a module."""
    known = {"weight_packed", "weight_scale", "weight_shape"}
    if not known <= parts.keys() or not is_understood(parts, known | _FURTHER) or "weight" in parts:
        return None
    packed, shape = stored.tensors[parts["weight_packed"]], _shape(stored, parts["weight_shape"])
    if packed.dtype != "I32" or len(packed.shape) != 2 or shape is None or shape[0] != packed.shape[0]:
        return None
    bits = next((bits for bits in _bits(stored) if -(-shape[1] * bits // 32) == packed.shape[1]), None)
    grid = _grid(shape, stored.tensors[parts["weight_scale"]], stored.settings)
    if bits is None or grid is None or not _fit(stored, parts, bits, grid):
        return None
    own = {"bits": bits, "grid": grid, "width": packed.shape[1]}
    name, left_out = parts["weight_packed"].removesuffix("_packed"), (*activation_scales(parts), parts["weight_shape"])
    overhead = 2 * panel_bytes(shape, shape[1], 32 // bits)
    return Found(name, _title(parts, bits), shape, _roles(parts, "weight_packed"), own, left_out, overhead)


def _bytes(stored: Stored, parts: Mapping[str, str]) -> Found | None:
    """Return the matrix of a module with one byte per integer."""
    known = {"weight", "weight_scale"}
    if 8 not in _bits(stored) or not known <= parts.keys() or not is_understood(parts, known | _FURTHER):
        return None
    info = stored.tensors[parts["weight"]]
    if info.dtype != "I8" or len(info.shape) != 2 or not info.numel:
        return None
    grid = _grid(info.shape, stored.tensors[parts["weight_scale"]], stored.settings)
    if grid is None or not _fit(stored, parts, 0, grid):
        return None
    overhead = 0 if _FURTHER.isdisjoint(parts) else 2 * panel_bytes(info.shape, info.shape[1], 1)
    roles, left_out = _roles(parts, "weight"), activation_scales(parts)
    return Found(parts["weight"], _title(parts, 8), info.shape, roles, {"bits": 0, "grid": grid}, left_out, overhead)


def _roles(parts: Mapping[str, str], values: str) -> dict[str, str]:
    """Return role -> name of the tensors of a module's matrix, whose integers have a name that ends with ``values``."""
    lasts = {"values": values, "scales": "weight_scale", "zeros": _ZEROS, "order": _ORDER}
    return {role: parts[last] for role, last in lasts.items() if last in parts}


def _title(parts: Mapping[str, str], bits: int) -> str:
    zeros = ", with zero points" if _ZEROS in parts else ""
    return f"integers of {bits} bits{zeros}{', reordered' if _ORDER in parts else ''} (compressed-tensors)"


def _fit(stored: Stored, parts: Mapping[str, str], bits: int, grid: Grid) -> bool:
    """Return whether a matrix has zero points and an order if the settings say so, and whether these fit it.

    Args:
        stored: the tensors of the checkpoint.
        parts: last part of the name -> name, for the tensors of the matrix's module.
        bits: bits of packed integers; 0 if each has a byte.
        grid: the matrix's blocks.
    """
    described = described_weights(stored.settings)
    asymmetric = {weights.get("symmetric") is False for weights in described}
    ordered = {weights.get("actorder") in _BY_GROUP for weights in described}
    if any(said and (last in parts) not in said for said, last in ((asymmetric, _ZEROS), (ordered, _ORDER))):
        return False
    if _ZEROS in parts:
        info, scales = stored.tensors[parts[_ZEROS]], stored.tensors[parts["weight_scale"]]
        packed = "I32", (-(-grid.rows * bits // 32), grid.scale_columns)
        if (info.dtype, info.shape) not in (("I8", scales.shape), *([packed] if grid.block_rows == 1 else [])):
            return False
    if _ORDER not in parts:
        return True
    order = stored.tensors[parts[_ORDER]]
    return grid.block_rows == 1 and order.dtype in ("I32", "I64") and order.shape == (grid.columns,)


def _bits(stored: Stored) -> list[int]:
    """Return the bit widths that the settings name, or all that are read."""
    declared = [weights.get("num_bits") for weights in described_weights(stored.settings)]
    return [bits for bits in BITS if not declared or bits in declared]


def _shape(stored: Stored, name: str) -> tuple[int, int] | None:
    """Return the shape that a small tensor holds."""
    content, dtype = stored.content(name), stored.tensors[name].dtype
    size = {"I64": 8, "I32": 4}.get(dtype, 0)
    if content is None or not size or len(content) != 2 * size:
        return None
    rows, columns = struct.unpack("<qq" if size == 8 else "<ii", content)
    return (rows, columns) if rows > 0 and columns > 0 else None


def _grid(shape: tuple[int, ...], scales: TensorInfo, settings: Settings) -> Grid | None:
    """Return the blocks of a matrix: all of it, rows, or groups within rows; None if the scales don't fit."""
    rows, columns = shape
    if scales.dtype not in SCALES:
        return None
    if scales.numel == 1:
        return Grid(rows, columns, rows, columns)
    groups = scales.shape[-1] if len(scales.shape) == 2 else 1
    if scales.shape not in ((rows,), (rows, groups)) or columns % groups:
        return None
    sizes = [weights.get("group_size") for weights in described_weights(settings)]
    if sizes and not any(is_grouped_by(size, columns, groups) for size in sizes):
        return None
    return Grid(rows, columns, 1, columns // groups)


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader | ScaledTensor:
    """Return a reader of a matrix of integers."""
    values, scales, grid, (rows, columns) = parts["values"], parts["scales"], tensor.settings["grid"], tensor.shape
    bits, width = tensor.settings["bits"], tensor.settings.get("width", columns)
    if not bits and not {"zeros", "order"} & parts.keys():
        return ScaledTensor(values, scales, tensor.shape, grid)

    def decode(first: int, last: int) -> Tensor:
        stored = values.read(first * width, last * width).view(-1, width)
        codes = _unpacked(stored, bits).view(last - first, -1)[:, :columns].contiguous()
        order = _order(parts["order"], grid) if "order" in parts else None
        if "zeros" in parts:
            codes.sub_(_per_column(_zeros(parts["zeros"], first, last, bits, grid), order, grid))
        if order is None:
            return multiply(codes.view(-1), first * columns, grid, scales)
        own = scales.read(first * grid.scale_columns, last * grid.scale_columns).view(last - first, -1)
        return codes.mul_(_per_column(float32(own), order, grid))

    return PanelReader(tensor.shape, rows, columns, 32 // bits if bits else 1, decode)


def _unpacked(stored: Tensor, bits: int) -> Tensor:
    """Return signed integers as float32: packed ones along a new last axis, others as they are."""
    return numbers(stored, bits).sub_(2 ** (bits - 1)) if bits else float32(stored)


def _zeros(stored: RangeReader, first: int, last: int, bits: int, grid: Grid) -> Tensor:
    """Return the zero points of some rows, float32 of shape ``(last − first, groups)``, or ``(1, 1)`` for one."""
    import torch

    groups = grid.scale_columns
    if grid.block_rows > 1:
        return float32(stored.read(0, 1)).view(1, 1)
    if stored.dtype == torch.int8:
        return float32(stored.read(first * groups, last * groups)).view(-1, groups)
    per_word = 32 // bits
    words = stored.read(first // per_word * groups, -(-last // per_word) * groups).view(-1, groups)
    return _unpacked(words, bits).transpose(1, 2).reshape(-1, groups)[: last - first]


def _per_column(groups: Tensor, order: Tensor | None, grid: Grid) -> Tensor:
    """Return the values of the groups of each column, from those per row and group."""
    return groups.repeat_interleave(grid.block_columns, dim=1) if order is None else groups[:, order]


def _order(stored: RangeReader, grid: Grid) -> Tensor | None:
    """Return the group of each column, or None if groups are consecutive, which is stored as −1.

    Raises:
        CheckpointError: the groups don't have the same number of columns.
    """
    import torch

    order = stored.read(0, grid.columns).long()
    if bool((order == -1).all()):
        return None
    inside = (order >= 0) & (order < grid.scale_columns)
    if not inside.all() or (torch.bincount(order, minlength=grid.scale_columns) != grid.block_columns).any():
        raise CheckpointError(
            f"weight_g_idx of a matrix of compressed-tensors must name each of {grid.scale_columns} groups "
            f"{grid.block_columns} times. The file is damaged."
        )
    return order


FORMAT = Format("integers", frozenset({_METHOD}), find, decoder, transforms)
