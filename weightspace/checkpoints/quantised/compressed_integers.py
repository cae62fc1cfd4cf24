"""Integers of compressed-tensors: 4 or 8 bits packed along the inputs (pack-quantized), or one byte each.

Values are symmetric integers times a scale per matrix, row, or group within a row. Packed integers are stored with an
offset of half their range.
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
from weightspace.checkpoints.quantised.scaling import Grid, ScaledTensor, multiply
from weightspace.checkpoints.quantised.settings import described_weights, transforms

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

_METHOD = "compressed-tensors"


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
    if not known <= parts.keys() or not is_understood(parts, known) or "weight" in parts:
        return None
    packed, scales = stored.tensors[parts["weight_packed"]], stored.tensors[parts["weight_scale"]]
    shape = _shape(stored, parts["weight_shape"])
    if packed.dtype != "I32" or len(packed.shape) != 2 or shape is None or shape[0] != packed.shape[0]:
        return None
    bits = next((bits for bits in _bits(stored) if -(-shape[1] * bits // 32) == packed.shape[1]), None)
    grid = _grid(shape, scales, stored.settings)
    if bits is None or grid is None:
        return None
    roles = {"values": parts["weight_packed"], "scales": parts["weight_scale"]}
    left_out = (*activation_scales(parts), parts["weight_shape"])
    name, own = parts["weight_packed"].removesuffix("_packed"), {"bits": bits, "grid": grid, "width": packed.shape[1]}
    title = f"integers of {bits} bits (compressed-tensors)"
    return Found(name, title, shape, roles, own, left_out, 2 * panel_bytes(shape, shape[1], 1))


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


def _bytes(stored: Stored, parts: Mapping[str, str]) -> Found | None:
    """Return the matrix of a module with one byte per integer."""
    tensors = stored.tensors
    if 8 not in _bits(stored) or "weight_scale" not in parts or not is_understood(parts, {"weight", "weight_scale"}):
        return None
    info = tensors[parts["weight"]]
    grid = (
        None
        if len(info.shape) != 2 or not info.numel
        else _grid(info.shape, tensors[parts["weight_scale"]], stored.settings)
    )
    if info.dtype != "I8" or grid is None:
        return None
    roles = {"values": parts["weight"], "scales": parts["weight_scale"]}
    title = "integers of 8 bits (compressed-tensors)"
    return Found(parts["weight"], title, info.shape, roles, {"grid": grid}, activation_scales(parts))


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
    if "bits" not in tensor.settings:
        return ScaledTensor(values, scales, tensor.shape, grid)
    bits, width = tensor.settings["bits"], tensor.settings["width"]

    def decode(first: int, last: int) -> Tensor:
        words = values.read(first * width, last * width).view(-1, width)
        codes = numbers(words, bits).view(last - first, -1)[:, :columns].contiguous().sub_(2 ** (bits - 1))
        return multiply(codes.view(-1), first * columns, grid, scales)

    return PanelReader(tensor.shape, rows, columns, 1, decode)


def _refusal(settings: Settings) -> str | None:
    """Return why the settings are not supported, or None."""
    for weights in described_weights(settings):
        if weights.get("symmetric") is False:
            return "zero points (symmetric: false)"
        if weights.get("actorder") in ("group", "dynamic", True):
            return f"actorder {weights['actorder']!r}"
    return transforms(settings)


FORMAT = Format("integers", frozenset({_METHOD}), find, decoder, _refusal)
