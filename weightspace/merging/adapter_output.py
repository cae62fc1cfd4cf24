"""Writing of merged adapters in the formats of PEFT, kohya and diffusers, with all scales 1."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, save_checkpoint
from weightspace.checkpoints.hashing import sha256_of
from weightspace.checkpoints.output_paths import check_checkpoint_output
from weightspace.checkpoints.provenance import described
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.file_names import diffusers_names, kohya_names, peft_names
from weightspace.lora.formats.module import ADAPTER_FORMATS, Module
from weightspace.lora.layout import fused_names
from weightspace.lora.low_rank import filled_up, wide_dtype
from weightspace.lora.write import (
    check_adapter_output,
    exact_targets,
    factor_names,
    lora_config,
    shaped,
    write_adapter,
)
from weightspace.suggestions import unknown

#: Tensor of the model -> merged ``B`` and ``A``.
Merged = dict[str, tuple[Tensor, Tensor]]


def chosen_format(written: str | None, adapters: Sequence[Adapter]) -> str:
    """Return the format to write: the one that is asked for, or that of all inputs.

    Raises:
        WeightspaceError: it is unknown, or the inputs have several.
    """
    if written is not None and written not in ADAPTER_FORMATS:
        raise unknown("format of adapters", written, ADAPTER_FORMATS)
    formats = list(dict.fromkeys(adapter.format for adapter in adapters))
    if written is None and len(formats) > 1:
        raise WeightspaceError(
            f"The adapters are in the formats {' and '.join(formats)}; expected the one to write (--format, format=…)."
        )
    return written or formats[0]


def check_output(out: str | os.PathLike[str], written: str, *, force: bool = False) -> None:
    """Check that an adapter can be written to a path in a format.

    Raises:
        CheckpointError: the name is that of a file for a format of folders or the other way round, or something else
            would be lost.
    """
    if written == "peft":
        check_adapter_output(out, force=force)
        return
    path = Path(out)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{out} is no name for a file of {written}; expected one that ends in .safetensors.")
    check_checkpoint_output(path, force=force)


def save_merged(
    merged: Merged,
    targets: Mapping[str, Factors],
    adapters: Sequence[Adapter],
    out: str | os.PathLike[str],
    written: str,
    metadata: Mapping[str, str],
) -> None:
    """Write merged factors.

    Args:
        merged: tensor of the model -> merged factors.
        targets: tensor of the model -> its factors in an input, which have its shape.
        adapters: the inputs.
        out: folder or file.
        written: a name in ``ADAPTER_FORMATS``.
        metadata: strings to save with the tensors.

    Raises:
        CheckpointError: a name can't be written in the format, or writing fails.
        WeightspaceError: a factor overflows the dtype.
    """
    modules = {name: module for adapter in adapters for name, module in adapter.modules.items()}
    dtypes = {name: _dtype(adapters, name) for name in merged}
    if written == "peft":
        names = peft_names(modules) if modules else {name: name.removesuffix(".weight") for name in merged}
        common = _fill_up_experts(merged)
        ranks = {names[name]: len(a) for name, (_, a) in merged.items()}
        state = {}
        for name, factors in merged.items():
            state |= _peft_tensors(name, names[name], targets[name], *factors, dtypes[name])
        write_adapter(state, _config(adapters, ranks, common), out, metadata=metadata)
        return
    modules = modules or {name: Module("", name.removesuffix(".weight"), "") for name in merged}
    if any(factors.transposed for factors in targets.values()):
        raise CheckpointError(f"Embeddings and weights stored as (in, out) have no names in the format {written}.")
    names = kohya_names(modules) if written == "kohya" else diffusers_names(modules)
    largest = max(len(a) for _, a in merged.values())
    state: StateDict = {}
    for name, (b, a) in merged.items():
        a, b = filled_up(a, b, largest)  # diffusers misreads alphas and ranks that differ between modules
        state |= _file_tensors(name, names[name], targets[name], b, a, dtypes[name], written)
    save_checkpoint(state, out, metadata=metadata)


def _file_tensors(
    name: str, module: str, like: Factors, b: Tensor, a: Tensor, dtype: torch.dtype, written: str
) -> StateDict:
    """Return the factors of a tensor as kohya and diffusers store them; rank 0 is stored as zeros of rank 1."""
    a, b = _finite(name, *_padded(b, a), dtype)
    a, b = shaped(a, b, like.shape)
    if written == "diffusers":
        return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    alpha = torch.tensor(float(len(a)))
    return {f"{module}.lora_down.weight": a, f"{module}.lora_up.weight": b, f"{module}.alpha": alpha}


def _peft_tensors(name: str, module: str, like: Factors, b: Tensor, a: Tensor, dtype: torch.dtype) -> StateDict:
    """Return the factors of a tensor as PEFT stores them; rank 0 is stored as zeros of rank 1."""
    shape = like.shape[::-1] if like.transposed else like.shape
    names = factor_names(module, embedding=like.embedding)
    return dict(zip(names, shaped(*_finite(name, *_padded(b, a), dtype), shape), strict=True))


def _padded(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors with a rank of at least 1."""
    return (b, a) if len(a) else (b.new_zeros(len(b), 1), a.new_zeros(1, a.shape[1]))


def _finite(name: str, b: Tensor, a: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``A`` and ``B`` in a dtype that holds them."""
    a, b = a.to(dtype), b.to(dtype)
    if not all(bool(factor.isfinite().all()) for factor in (a, b)):
        raise WeightspaceError(
            f"The merged factors of {name!r} overflow {str(dtype).removeprefix('torch.')}. Are the scales of the "
            "adapters right?"
        )
    return a, b


def _fill_up_experts(merged: Merged) -> int | None:
    """Pad the factors of fused experts in place to one rank, as PEFT requires; return that rank, if any."""
    fused = fused_names(merged)
    common = max((len(merged[name][1]) for name in fused), default=None)
    for name in fused:
        b, a = merged[name]
        a, b = filled_up(a, b, common or 0)
        merged[name] = b, a
    return common


def _dtype(adapters: Sequence[Adapter], name: str) -> torch.dtype:
    """Return the dtype in which the merged factors are written."""
    found = [
        adapter.contents.tensors[tensor].dtype
        for adapter in adapters
        if name in adapter.factors
        for tensor in adapter.factors[name].names.values()
    ]
    return wide_dtype(*(torch.float64 for dtype in found if dtype == "F64"))


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int], common: int | None) -> dict[str, Any]:
    """Return PEFT's configuration of the merged adapter, with the common rank of fused experts, if any."""
    fields = adapters[0].configuration.fields
    kept = {key: fields[key] for key in ("base_model_name_or_path", "task_type", "auto_mapping") if key in fields}
    turned = any(adapter.configuration.fan_in_fan_out for adapter in adapters)
    modules = {name: max(1, rank) for name, rank in ranks.items()}
    config = lora_config(modules, common=common, fan_in_fan_out=turned, **kept)
    by_pattern = any(isinstance(adapter.configuration.fields.get("target_modules"), str) for adapter in adapters)
    return exact_targets(config) if by_pattern and any("." not in module for module in modules) else config


def metadata_of(adapters: Sequence[Adapter], method: str, recorded: Mapping[str, Any]) -> dict[str, str]:
    """Return the provenance of the merged adapter."""
    files = dict.fromkeys(file for adapter in adapters for file in adapter.files)
    digests = {file: sha256_of(file) for file in files}
    return described([(adapter.path, adapter.files) for adapter in adapters], digests, f"adapters:{method}", recorded)
