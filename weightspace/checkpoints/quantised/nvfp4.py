"""NVFP4: FP4 numbers in blocks of 16 with an FP8 scale each and one scale for the matrix, of ModelOpt and
compressed-tensors.

The scale of a block is its FP8 number times the scale of the matrix (ModelOpt's ``weight_scale_2``) or divided by it
(``weight_global_scale``), rounded to float32; an element is its number times that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightspace.checkpoints.metadata import QuantisedTensor
from weightspace.checkpoints.quantised.companions import activation_scales, is_understood
from weightspace.checkpoints.quantised.format import Format, Found, Stored
from weightspace.checkpoints.quantised.four_bit import e2m1
from weightspace.checkpoints.quantised.panels import PanelReader, panel_bytes
from weightspace.checkpoints.quantised.scaling import float32
from weightspace.checkpoints.quantised.settings import transforms

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

#: Numbers per block.
_BLOCK = 16

#: Last parts of the names of packed numbers and of the matrix's scale, and whether blocks' scales are divided by it.
_LAYOUTS = (("weight", "weight_scale_2", False), ("weight_packed", "weight_global_scale", True))


def find(stored: Stored) -> list[Found]:
    """Return the matrices of FP4 numbers with FP8 scales."""
    found = []
    for parts in stored.modules.values():
        for packed, whole, divides in _LAYOUTS:
            known = {packed, "weight_scale", whole}
            is_twice = packed != "weight" and "weight" in parts
            if is_twice or not known <= parts.keys() or not is_understood(parts, known):
                continue
            numbers, scales, one = (stored.tensors[parts[last]] for last in (packed, "weight_scale", whole))
            if (numbers.dtype, scales.dtype, one.dtype, one.numel) != ("U8", "F8_E4M3", "F32", 1):
                continue
            columns = 2 * numbers.shape[-1] if numbers.shape else 0
            if len(numbers.shape) != 2 or scales.shape != (numbers.shape[0], columns // _BLOCK) or columns % _BLOCK:
                continue
            shape = (numbers.shape[0], columns)
            roles = {"values": parts[packed], "scales": parts["weight_scale"], "whole": parts[whole]}
            name, overhead = parts[packed].removesuffix("_packed"), panel_bytes(shape, columns, 1)
            found.append(Found(name, "NVFP4", shape, roles, {"divides": divides}, activation_scales(parts), overhead))
    return found


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader:
    """Return a reader of a matrix of FP4 numbers with FP8 scales."""
    values, scales, (rows, columns) = parts["values"], parts["scales"], tensor.shape
    width, groups, divides = columns // 2, columns // _BLOCK, tensor.settings["divides"]

    def decode(first: int, last: int) -> Tensor:
        whole = parts["whole"].read(0, 1)
        own = float32(scales.read(first * groups, last * groups))
        own = own / whole if divides else own * whole
        numbers = e2m1(values.read(first * width, last * width).view(-1, _BLOCK // 2))
        return numbers.mul_(own[:, None]).view(-1, columns)

    return PanelReader(tensor.shape, rows, columns, 1, decode)


FORMAT = Format("NVFP4", frozenset({"", "modelopt", "modelopt_fp4", "compressed-tensors"}), find, decoder, transforms)
