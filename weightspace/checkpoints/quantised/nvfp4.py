"""NVFP4: FP4 numbers in blocks of 16 with an FP8 scale each and one scale for the matrix, of ModelOpt and
compressed-tensors.

The scale of a block is its FP8 number times the scale of the matrix (ModelOpt's ``weight_scale_2``) or divided by it
(``weight_global_scale``), rounded to float32; an element is its number times that.

ModelOpt stores a stack of experts' matrices ``(experts, inputs, outputs)`` with blocks and bytes along the inputs, as
``(experts, inputs / 2, outputs)`` with scales of shape ``(experts, inputs / 16, outputs)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo
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

#: Names of stacks of experts' matrices; their scales have these names with the ends below.
_STACKS = ("gate_up_proj", "down_proj")
_ENDS = {"values": "", "scales": "_weight_scale", "whole": "_weight_scale_2"}


def find(stored: Stored) -> list[Found]:
    """Return the matrices of FP4 numbers with FP8 scales."""
    found = [own for parts in stored.modules.values() for own in _matrices(parts, stored.tensors)]
    return found + [own for parts in stored.modules.values() for own in _stacks(parts, stored.tensors)]


def _matrices(parts: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> Iterator[Found]:
    """Yield the matrix of a module."""
    for packed, whole, divides in _LAYOUTS:
        known = {packed, "weight_scale", whole}
        is_twice = packed != "weight" and "weight" in parts
        if is_twice or not known <= parts.keys() or not is_understood(parts, known):
            continue
        roles = {"values": parts[packed], "scales": parts["weight_scale"], "whole": parts[whole]}
        shape = _shape(*(tensors[name] for name in roles.values()))
        if shape is None or len(shape) != 2:
            continue
        name, settings = parts[packed].removesuffix("_packed"), {"divides": divides, "stacked": False}
        yield Found(name, "NVFP4", shape, roles, settings, activation_scales(parts), panel_bytes(shape, shape[1], 1))


def _stacks(parts: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> Iterator[Found]:
    """Yield the stacks of experts' matrices in a module."""
    if not is_understood(parts, {stack + end for stack in _STACKS for end in _ENDS.values()}):
        return
    left_out = activation_scales(parts)
    for stack in _STACKS:
        if not {stack + end for end in _ENDS.values()} <= parts.keys():
            continue
        roles = {role: parts[stack + end] for role, end in _ENDS.items()}
        shape = _shape(*(tensors[name] for name in roles.values()))
        if shape is None or len(shape) != 3:
            continue
        settings, overhead = {"divides": False, "stacked": True}, panel_bytes(shape, shape[2], _BLOCK)
        yield Found(parts[stack], "NVFP4", shape, roles, settings, left_out, overhead)
        left_out = ()


def _shape(numbers: TensorInfo, scales: TensorInfo, whole: TensorInfo) -> tuple[int, ...] | None:
    """Return the shape of the tensor whose second axis is packed, or None if the parts don't fit each other."""
    if (numbers.dtype, scales.dtype, whole.dtype, whole.numel) != ("U8", "F8_E4M3", "F32", 1):
        return None
    if len(numbers.shape) < 2 or not numbers.numel:
        return None
    first, packed, *others = numbers.shape
    length = 2 * packed
    return None if length % _BLOCK or scales.shape != (first, length // _BLOCK, *others) else (first, length, *others)


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader:
    """Return a reader of matrices of FP4 numbers with FP8 scales."""
    values, scales, columns = parts["values"], parts["scales"], tensor.shape[-1]
    width, groups, divides = columns // 2, columns // _BLOCK, tensor.settings["divides"]

    def block_scales(start: int, stop: int) -> Tensor:
        own, whole = float32(scales.read(start, stop)), parts["whole"].read(0, 1)
        return own / whole if divides else own * whole

    def matrix_rows(first: int, last: int) -> Tensor:
        numbers = e2m1(values.read(first * width, last * width).view(-1, _BLOCK // 2))
        return numbers.mul_(block_scales(first * groups, last * groups)[:, None]).view(-1, columns)

    def stack_rows(first: int, last: int) -> Tensor:
        packed = values.read(first // 2 * columns, last // 2 * columns)
        numbers = e2m1(packed.view(-1, columns, 1)).transpose(1, 2).reshape(-1, _BLOCK, columns)
        own = block_scales(first // _BLOCK * columns, last // _BLOCK * columns).view(-1, 1, columns)
        return numbers.mul_(own).view(-1, columns)

    if tensor.settings["stacked"]:
        return PanelReader(tensor.shape, tensor.shape[1], columns, _BLOCK, stack_rows)
    return PanelReader(tensor.shape, tensor.shape[0], columns, 1, matrix_rows)


FORMAT = Format("NVFP4", frozenset({"", "modelopt", "modelopt_fp4", "compressed-tensors"}), find, decoder, transforms)
