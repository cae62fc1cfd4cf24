"""The quantisation scheme of a merge's output, by default the one that all models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.file_format import DCP_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.metadata import QuantisedTensor
from weightspace.checkpoints.quantised.fp8 import BLOCK
from weightspace.checkpoints.quantised.settings import read_settings
from weightspace.merging.config.quantisation import described
from weightspace.merging.plan.gguf_output import is_gguf
from weightspace.merging.plan.options import OutputOptions
from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.parse import Recipe
from weightspace.merging.recipe.types import Quantise


def output_quantisation(
    recipe: Recipe, members: Sequence[Member], options: OutputOptions, out: Path
) -> Quantise | None:
    """Return how the output is quantised: as the recipe says or, if it names no dtype either, as all models are.

    A shared scheme is kept if it is one that is written, and no model has activation scales.

    Args:
        recipe: the recipe.
        members: the checkpoints of the merge.
        options: options of the output.
        out: the output.
    """
    if recipe.quantise is not None:
        return recipe.quantise
    is_plain = options.allow_nonfinite or out.suffix.lower() in (*TORCH_SUFFIXES, DCP_SUFFIX)
    if is_plain or recipe.dtype is not None or recipe.out_dtype is not None:
        return None
    scheme_of = _gguf_scheme if is_gguf(out) else _scheme
    schemes = {scheme_of(member) for member in members}
    scheme = schemes.pop() if len(schemes) == 1 else None
    return None if scheme is None else Quantise(scheme, inherited=True)


def _gguf_scheme(member: Member) -> str | None:
    """Return the scheme of a GGUF file's quantised tensors, or None if it isn't the one that is written."""
    formats = {tensor.format for tensor in member.contents.quantised.values() if not tensor.is_exact}
    return "q8_0" if formats == {"GGUF Q8_0"} and member.adapter is None else None


def _scheme(member: Member) -> str | None:
    """Return the scheme of a model's quantised matrices, or None if it isn't one that is written."""
    contents = member.contents
    if member.adapter is not None or not contents.quantised or contents.assembled:
        return None
    found = {_tensor_scheme(tensor) for tensor in contents.quantised.values()}
    scheme = found.pop() if len(found) == 1 else None
    folder = contents.path if contents.path.is_dir() else contents.path.parent
    return scheme if scheme is not None and _agrees(read_settings(folder).options, described(scheme, ())) else None


def _tensor_scheme(tensor: QuantisedTensor) -> str | None:
    """Return the scheme of a quantised matrix, or None."""
    scales, grid = tensor.parts.get("scales"), tensor.settings.get("grid")
    is_fp8 = "values" in tensor.parts and tensor.parts["values"].info.dtype == "F8_E4M3"
    if not is_fp8 or scales is None or grid is None or tensor.left_out or len(tensor.shape) < 2:
        return None
    last = scales.name.rpartition(".")[2]
    block = grid.block_rows, grid.block_columns
    if last.endswith("_scale_inv"):
        return "fp8-block" if block == (min(grid.rows, BLOCK), min(grid.columns, BLOCK)) else None
    if last != "weight_scale" or grid.block_columns != grid.columns:
        return None
    return {grid.rows: "fp8-tensor", 1: "fp8-channel"}.get(grid.block_rows)


def _agrees(options: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """Return whether a model's description of its quantisation, if any, agrees with that of the output."""
    if not options:
        return True
    keys = ("quant_method", "activation_scheme", "weight_block_size", "config_groups")
    return all(_is_part(written[key], options.get(key)) for key in keys if key in written)


def _is_part(written: Any, found: Any) -> bool:
    """Return whether every written key is found with an equal value."""
    if isinstance(written, Mapping):
        return isinstance(found, Mapping) and all(_is_part(value, found.get(key)) for key, value in written.items())
    return bool(written == found)
