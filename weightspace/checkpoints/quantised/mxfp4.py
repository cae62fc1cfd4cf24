"""MXFP4: FP4 numbers in blocks of 32 that share a power of two, as gpt-oss and compressed-tensors store them.

gpt-oss stores the experts' matrices transposed, ``blocks`` of shape ``(experts, outputs, inputs / 32, 16)``; the tensor
that they represent has shape ``(experts, inputs, outputs)``. Values are exact in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo
from weightspace.checkpoints.quantised.companions import activation_scales, is_power_of_two, is_understood
from weightspace.checkpoints.quantised.format import Format, Found, Stored
from weightspace.checkpoints.quantised.four_bit import e2m1
from weightspace.checkpoints.quantised.panels import PanelReader, panel_bytes, read_columns
from weightspace.checkpoints.quantised.scaling import powers_of_two
from weightspace.checkpoints.quantised.settings import transforms

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

#: Numbers per block, and the bytes that hold them.
_BLOCK, _BYTES = 32, 16

_BLOCKS, _SCALES = "_blocks", "_scales"


def find(stored: Stored) -> list[Found]:
    """Return the matrices of FP4 numbers with shared powers of two."""
    found = [_experts(name, stored.tensors) for name in stored.tensors if name.endswith(_BLOCKS)]
    found += [_packed(parts, stored.tensors) for parts in stored.modules.values() if "weight_packed" in parts]
    return [own for own in found if own is not None]


def _experts(name: str, tensors: Mapping[str, TensorInfo]) -> Found | None:
    """Return the matrices of gpt-oss's experts with these blocks."""
    own = name.removesuffix(_BLOCKS)
    scales, blocks = tensors.get(own + _SCALES), tensors[name]
    if scales is None or own in tensors or blocks.dtype != "U8" or not is_power_of_two(scales):
        return None
    if len(blocks.shape) != 4 or blocks.shape[-1] != _BYTES or scales.shape != blocks.shape[:-1] or not blocks.numel:
        return None
    experts, outputs, groups, _ = blocks.shape
    shape = (experts, groups * _BLOCK, outputs)
    parts = {"values": name, "scales": own + _SCALES}
    return Found(own, "MXFP4", shape, parts, {"transposed": True}, overhead=panel_bytes(shape, outputs, _BLOCK))


def _packed(parts: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> Found | None:
    """Return the matrix of a module in the format of compressed-tensors."""
    if "weight_scale" not in parts or not is_understood(parts, {"weight_packed", "weight_scale"}) or "weight" in parts:
        return None
    packed, scales = tensors[parts["weight_packed"]], tensors[parts["weight_scale"]]
    if packed.dtype != "U8" or not is_power_of_two(scales) or len(packed.shape) != 2 or not packed.numel:
        return None
    rows, width = packed.shape
    if scales.shape != (rows, 2 * width // _BLOCK) or width % _BYTES:
        return None
    roles = {"values": parts["weight_packed"], "scales": parts["weight_scale"]}
    name, overhead = parts["weight_packed"].removesuffix("_packed"), panel_bytes((rows, 2 * width), 2 * width, 1)
    return Found(name, "MXFP4", (rows, 2 * width), roles, {"transposed": False}, activation_scales(parts), overhead)


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader:
    """Return a reader of matrices of FP4 numbers with shared powers of two."""
    values, scales, shape = parts["values"], parts["scales"], tensor.shape
    if not tensor.settings["transposed"]:
        return PanelReader(
            shape, shape[0], shape[1], 1, lambda first, last: _rows(values, scales, first, last, shape[1])
        )
    _, inputs, outputs = shape
    groups = inputs // _BLOCK

    def columns(first: int, last: int) -> Tensor:
        matrix, row = divmod(first, inputs)
        start, stop = row // _BLOCK, -(-(row + last - first) // _BLOCK)
        place = (matrix * outputs, outputs)
        packed = read_columns(values, *place, groups * _BYTES, start * _BYTES, stop * _BYTES)
        numbers = e2m1(packed).view(outputs, stop - start, _BLOCK)
        numbers *= powers_of_two(read_columns(scales, *place, groups, start, stop))[..., None]
        return numbers.permute(1, 2, 0).reshape(-1, outputs)

    return PanelReader(shape, inputs, outputs, _BLOCK, columns)


def _rows(values: RangeReader, scales: RangeReader, first: int, last: int, columns: int) -> Tensor:
    """Return rows of a matrix that is stored row by row."""
    width, groups = columns // 2, columns // _BLOCK
    numbers = e2m1(values.read(first * width, last * width).view(-1, _BYTES))
    numbers *= powers_of_two(scales.read(first * groups, last * groups))[:, None]
    return numbers.view(-1, columns)


FORMAT = Format("MXFP4", frozenset({"", "mxfp4", "compressed-tensors"}), find, decoder, transforms)
