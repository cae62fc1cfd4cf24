"""bitsandbytes: NF4 and FP4 in blocks of a flattened matrix, with scales that may be quantised too, and LLM.int8.

A 4-bit element is its entry in the table ``quant_map`` times the scale of its block. A scale that is quantised too is
its entry in ``nested_quant_map`` times a scale, plus an offset. An 8-bit element is an integer times the scale of its
row over 127. Values are those that the library computes in float32, before it rounds to the dtype of the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from weightspace.checkpoints.metadata import QuantisedTensor
from weightspace.checkpoints.quantised.companions import is_understood
from weightspace.checkpoints.quantised.format import Format, Found, Stored
from weightspace.checkpoints.quantised.four_bit import looked_up, pairs
from weightspace.checkpoints.quantised.panels import PanelReader, panel_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.reader import RangeReader

#: Part of the name of a matrix's JSON description, between the name of the matrix and the kind of its 4-bit numbers.
_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")

#: Role -> suffix of the name of a 4-bit matrix.
_PARTS = {"values": "", "scales": ".absmax", "table": ".quant_map"}
_NESTED = {"nested_scales": ".nested_absmax", "nested_table": ".nested_quant_map"}

#: 1/127 in float32, by which the library multiplies.
_INVERSE = 7.874015718698502e-3


def find(stored: Stored) -> list[Found]:
    """Return the 4-bit and 8-bit matrices of bitsandbytes."""
    four = [_four_bit(stored, name) for name in stored.tensors if _STATE in name]
    eight = [_eight_bit(stored, parts) for parts in stored.modules.values() if "SCB" in parts]
    return [own for own in (*four, *eight) if own is not None]


def _four_bit(stored: Stored, state: str) -> Found | None:
    """Return the 4-bit matrix of a JSON description."""
    name, _, kind = state.partition(_STATE)
    described = _description(stored.content(state))
    shape, block = described.get("shape"), described.get("blocksize", 0)
    if described.get("quant_type", kind) != kind:
        return None
    if kind not in _KINDS or not _sizes(shape) or not _sizes([block]) or block % 2:
        return None
    count, blocks = math.prod(shape), -(-math.prod(shape) // block)
    is_nested = f"{name}.nested_absmax" in stored.tensors
    parts = {role: name + last for role, last in (*_PARTS.items(), *(_NESTED.items() if is_nested else ()))}
    others = {own for own in stored.modules.get(name, {}).values()} - set(parts.values())
    if others or any(part not in stored.tensors for part in parts.values()):
        return None
    infos = {role: stored.tensors[part] for role, part in parts.items()}
    nested_block, offset = described.get("nested_blocksize", 1), described.get("nested_offset", 0.0)
    expected = {"values": ("U8", -(-count // 2)), "scales": ("F32", blocks), "table": ("F32", 16)}
    if is_nested:
        if not _sizes([nested_block]) or not isinstance(offset, float):
            return None
        expected["scales"] = ("U8", blocks)
        expected |= {"nested_scales": ("F32", -(-blocks // nested_block)), "nested_table": ("F32", 256)}
    if {role: (info.dtype, info.numel) for role, info in infos.items()} != expected:
        return None
    settings = {"block": block, "nested_block": nested_block, "offset": offset}
    title = f"bitsandbytes {kind.upper()}{', scales quantised too' if is_nested else ''}"
    return Found(name, title, tuple(shape), parts, settings, (state,), panel_bytes(tuple(shape), block, 1))


def _description(content: bytes | None) -> Mapping[str, Any]:
    """Return the JSON description of a matrix; empty if it is damaged or not on this machine."""
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sizes(values: Any) -> TypeGuard[list[int]]:
    """Return whether a value is a list of positive integers."""
    return isinstance(values, list) and bool(values) and all(type(one) is int and one > 0 for one in values)


def _eight_bit(stored: Stored, parts: Mapping[str, str]) -> Found | None:
    """Return the LLM.int8 matrix of a module, if it is in row-major layout."""
    known = {"weight", "SCB", "weight_format"}
    if "weight" not in parts or not is_understood(parts, known):
        return None
    if "weight_format" in parts and (stored.content(parts["weight_format"]) or b"?").strip(b"\0"):
        return None
    numbers, scales = stored.tensors[parts["weight"]], stored.tensors[parts["SCB"]]
    shape = numbers.shape
    if (
        (numbers.dtype, scales.dtype) != ("I8", "F32")
        or len(shape) != 2
        or scales.shape != shape[:1]
        or not numbers.numel
    ):
        return None
    left_out = (parts["weight_format"],) if "weight_format" in parts else ()
    roles = {"values": parts["weight"], "scales": parts["SCB"]}
    overhead = panel_bytes(shape, shape[1], 1)
    return Found(parts["weight"], "bitsandbytes 8-bit", shape, roles, {}, left_out, overhead)


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> PanelReader:
    """Return a reader of a bitsandbytes matrix."""
    if "table" not in parts:
        return _eight_bit_reader(parts["values"], parts["scales"], tensor.shape)
    count, block = math.prod(tensor.shape), tensor.settings["block"]
    table = pairs(parts["table"].read(0, 16), low_first=False)

    def decode(first: int, last: int) -> Tensor:
        start, stop = first * block, min(last * block, count)
        numbers = looked_up(parts["values"].read(start // 2, -(-stop // 2)), table)[: stop - start]
        scales = _block_scales(parts, tensor.settings, first, last)
        if len(numbers) == len(scales) * block:
            return numbers.view(-1, block).mul_(scales[:, None])
        return numbers.mul_(scales.repeat_interleave(block)[: len(numbers)])

    return PanelReader(tensor.shape, -(-count // block), block, 1, decode)


def _block_scales(parts: Mapping[str, RangeReader], settings: Mapping[str, Any], first: int, last: int) -> Tensor:
    """Return the scales of some consecutive blocks."""
    scales = parts["scales"].read(first, last)
    if "nested_table" not in parts:
        return scales
    block = settings["nested_block"]
    start, stop = first // block, -(-last // block)
    nested = parts["nested_scales"].read(start, stop).repeat_interleave(block)[first - start * block :]
    return parts["nested_table"].read(0, 256)[scales.int()] * nested[: last - first] + settings["offset"]


def _eight_bit_reader(values: RangeReader, scales: RangeReader, shape: tuple[int, ...]) -> PanelReader:
    """Return a reader of an LLM.int8 matrix."""
    import torch

    rows, columns = shape

    def decode(first: int, last: int) -> Tensor:
        numbers = values.read(first * columns, last * columns).view(-1, columns).to(torch.float32)
        return numbers.mul_(scales.read(first, last)[:, None]).mul_(_INVERSE)

    return PanelReader(shape, rows, columns, 1, decode)


FORMAT = Format("bitsandbytes", frozenset({"", "bitsandbytes"}), find, decoder)
