"""FP8 numbers with a scale per tensor, channel, group or block, in the layouts of transformers, DeepSeek,
compressed-tensors, ModelOpt, FBGEMM, Mistral and ComfyUI.

The value of an element is its FP8 number times the scale of its block, in float32. Scales may be powers of two (E8M0),
as in MXFP8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weightspace.checkpoints.metadata import QuantisedTensor, TensorInfo
from weightspace.checkpoints.quantised.comfyui import FILE_MARK, MARK
from weightspace.checkpoints.quantised.companions import (
    activation_scales,
    is_fp8,
    is_power_of_two,
    is_understood,
)
from weightspace.checkpoints.quantised.format import Format, Found, Settings, Stored
from weightspace.checkpoints.quantised.scaling import Grid, PowersOfTwo, ScaledTensor, grid_of
from weightspace.checkpoints.quantised.settings import described_weights, transforms
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from weightspace.checkpoints.reader import RangeReader

#: Last part of a matrix's name -> last parts of the names that its scales may have.
_SCALES = {
    "weight": ("weight_scale_inv", "weight_scale", "scale_weight", "qscale_weight"),
    "gate_up_proj": ("gate_up_proj_scale_inv", "gate_up_proj_scale", "gate_up_proj_weight_scale"),
    "down_proj": ("down_proj_scale_inv", "down_proj_scale", "down_proj_weight_scale"),
}

#: The bytes of the scale that files of ComfyUI have beside matrices that aren't quantised.
_ONE = {"F32": b"\x00\x00\x80\x3f", "BF16": b"\x80\x3f", "F16": b"\x00\x3c"}

#: Default side of a block: DeepSeek's; and the length of the blocks of MXFP8, which lie in a row.
BLOCK, _MX = 128, 32

_DTYPES = ("F32", "BF16", "F16")


def find(stored: Stored) -> list[Found]:
    """Return the matrices of FP8 numbers that have scales."""
    found = [own for parts in stored.modules.values() for own in _in_module(parts, stored.tensors, stored.settings)]
    marks = tuple(name for name in stored.tensors if name.rpartition(".")[2] == FILE_MARK)
    if found and marks:
        found[0] = found[0]._replace(left_out=(*found[0].left_out, *marks, *_scales_of_one(stored)))
    return found


def _scales_of_one(stored: Stored) -> Iterator[str]:
    """Yield the scales beside matrices that aren't quantised, and the activations' scales with them."""
    for parts in stored.modules.values():
        scale = parts.get("scale_weight")
        if scale is None or "weight" not in parts or stored.tensors[parts["weight"]].dtype not in _DTYPES:
            continue
        info = stored.tensors[scale]
        if info.numel == 1 and info.dtype in _ONE and stored.content(scale) == _ONE[info.dtype]:
            yield scale
            yield from activation_scales(parts)


def _in_module(parts: Mapping[str, str], tensors: Mapping[str, TensorInfo], settings: Settings) -> Iterator[Found]:
    """Yield the matrices of a module."""
    pairs = {
        matrix: next((scale for scale in scales if scale in parts), None)
        for matrix, scales in _SCALES.items()
        if matrix in parts and is_fp8(tensors[parts[matrix]])
    }
    known = {*pairs, *filter(None, pairs.values()), MARK}
    if not is_understood(parts, known):
        return
    left_out = (*activation_scales(parts), *(name for last, name in parts.items() if last == MARK))
    for matrix, scale in pairs.items():
        if scale is None:
            continue
        shape = tensors[parts[matrix]].shape
        grid = _grid(shape, tensors[parts[scale]], settings)
        if grid is not None:
            roles = {"values": parts[matrix], "scales": parts[scale]}
            is_power = is_power_of_two(tensors[parts[scale]])
            title = f"FP8, {_granularity(grid, shape)}{', a power of two' if is_power else ''}"
            yield Found(parts[matrix], title, shape, roles, {"grid": grid}, left_out)
            left_out = ()


def _grid(shape: tuple[int, ...], scales: TensorInfo, settings: Settings) -> Grid | None:
    """Return the blocks of a tensor that have a scale each, or None if the scales don't fit it."""
    block = _block(settings)
    if not is_power_of_two(scales):
        own = _broadcast_shape(shape, scales.shape, settings)
        return grid_of(shape, own, block or (BLOCK, BLOCK)) if scales.dtype in _DTYPES else None
    is_mx = len(shape) > 1 and scales.shape == (*shape[:-1], -(-shape[-1] // _MX))
    if scales.dtype == "U8" and not (is_mx and block in (None, (1, _MX))):
        return None
    return grid_of(shape, scales.shape, block or ((1, _MX) if is_mx else (BLOCK, BLOCK)))


def _broadcast_shape(shape: tuple[int, ...], scales: tuple[int, ...], settings: Settings) -> tuple[int, ...]:
    """Return the shape of scales so that they are broadcast to the tensor.

    ModelOpt gives scales of blocks the shape ``(rows, 1, columns, 1)``. transformers gives FBGEMM's scales of
    ``down_proj`` of experts, a stack of matrices ``(in, out)``, the shape ``(experts, out, 1)``.

    Raises:
        CheckpointError: the matrices are square, and nothing says whether the scales belong to rows or to columns.
    """
    if len(shape) == 2 and len(scales) == 4 and scales[1::2] == (1, 1):
        return scales[::2]
    if len(shape) != 3 or shape[2] == 1:
        return scales
    if settings.method == "fbgemm_fp8" and scales == (shape[0], shape[2], 1):
        return shape[0], 1, shape[2]
    is_unclear = scales == shape[:2] or (scales == (*shape[:2], 1) and settings.method == "")
    if shape[1] == shape[2] and is_unclear:
        raise CheckpointError(
            f"The FP8 scales of a stack of square matrices {shape} have the shape {scales}: they may belong to rows or "
            f"to columns. Expected {(*shape[:2], 1)} or {(shape[0], 1, shape[2])}, and a quant_method in config.json."
        )
    return scales


def _granularity(grid: Grid, shape: tuple[int, ...]) -> str:
    """Return the unit that has a scale, in words."""
    whole = grid.block_columns == grid.columns
    if whole and grid.block_rows == grid.rows:
        return "a scale per tensor"
    if whole and grid.block_rows == 1:
        return "a scale per matrix" if len(shape) == 3 and grid.rows == shape[0] else "a scale per channel"
    return f"a scale per {grid.block_rows} × {grid.block_columns} block"


def _block(settings: Settings) -> tuple[int, int] | None:
    """Return the shape of a block from the settings, or None if they don't name it."""
    sizes = settings.options.get("weight_block_size")
    for group in described_weights(settings):
        sizes = group.get("block_structure") or sizes
        if group.get("strategy") in ("group", "tensor_group") and isinstance(group.get("group_size"), int):
            sizes = [1, group["group_size"]]
    if isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes):
        return sizes[0], sizes[1]
    return None


def _refusal(settings: Settings) -> str | None:
    """Return why the settings are not supported, or None."""
    options = settings.options
    if options.get("scale_fmt") not in (None, "float", "ue8m0"):
        return f"scale_fmt {options['scale_fmt']!r}"
    if options.get("expert_dtype") not in (None, "fp8"):
        return f"expert_dtype {options['expert_dtype']!r}"
    return transforms(settings)


def decoder(parts: Mapping[str, RangeReader], tensor: QuantisedTensor) -> ScaledTensor:
    """Return a reader of an FP8 matrix."""
    is_power = is_power_of_two(tensor.parts["scales"].info)
    scales = PowersOfTwo(parts["scales"]) if is_power else parts["scales"]
    return ScaledTensor(parts["values"], scales, tensor.shape, tensor.settings["grid"])


FORMAT = Format(
    "FP8 with scales",
    frozenset({"", "fp8", "mxfp8", "fbgemm_fp8", "compressed-tensors", "modelopt"}),
    find,
    decoder,
    _refusal,
)
