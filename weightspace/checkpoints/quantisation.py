"""Quantised weights, recognised by the names and dtypes of their tensors and by what lies beside them.

A quantised matrix is spread over several tensors (packed integers or FP8 numbers, scales, zero points, code books). Its
value is a function of all of them: the mean of each is not the mean of the matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weightspace.errors import CheckpointError


class Quantised(NamedTuple):
    """The format of quantised weights, and the tensor or file that shows it."""

    format: str
    evidence: str


#: Last part of a tensor's name that no other network has -> the format.
_MARKS: Mapping[str, str] = {
    "weight_scale_2": "NVFP4",
    "weight_global_scale": "NVFP4 (compressed-tensors)",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "FP8 with block scales",
    "scaled_fp8": "FP8 with scales (ComfyUI)",
    "g_idx": "GPTQ",
    "SCB": "bitsandbytes 8-bit",
    "weight_format": "bitsandbytes 8-bit",
    "Qidxs": "QuIP#",
    "_packed_params": "torch.ao.quantization",
}

#: Last parts of names that one module has together -> the format. Alone, ``W_q`` may be the matrix of the queries.
_MODULES: Mapping[tuple[str, ...], str] = {
    ("qweight", "scales"): "AWQ",
    ("absmax", "quant_map"): "bitsandbytes 4-bit",
    ("W_q", "scale", "zero"): "HQQ",
    ("q_weight", "q_scale"): "EXL2",
    ("trellis", "suh"): "EXL3",
    ("codes", "codebooks", "scales"): "AQLM",
    ("indices", "centroids"): "VPTQ",
    ("_data", "_scale"): "quanto",
}

#: Endings of two tensors that are alike up to them -> the format.
_PAIRS: Mapping[tuple[str, str], str] = {
    ("_blocks", "_scales"): "MXFP4",
    (".weight", ".weight_scales"): "EETQ",
}

#: Files beside the weights of a folder that say that they are quantised.
_FILES: Mapping[str, str] = {
    "hf_quant_config.json": "ModelOpt (FP8 or NVFP4)",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
}

#: Keys of a configuration that hold how the weights are quantised.
_KEYS = ("quantization_config", "compression_config")

#: What scales of FP8 numbers and of integers are called beside them.
_SCALE = re.compile(r"((weight|input|output|k|v|q)_)?(scale|scales|scale_inv|zero_point)|scale_(weight|input)")

#: Names of matrices.
_MATRICES = ("weight", "gate_up_proj", "down_proj")


def find_quantised(tensors: Mapping[str, tuple[str, int]]) -> Quantised | None:
    """Return the format that tensors are quantised in, None where they are plain.

    Args:
        tensors: name -> the safetensors name of its dtype, and its number of axes.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last in _MARKS:
            return Quantised(_MARKS[last], name)
        modules.setdefault(module, {})[last] = name
    for parts in modules.values():
        for marks, kind in _MODULES.items():
            if all(mark in parts for mark in marks):
                return Quantised(kind, parts[marks[0]])
    for (ending, other), kind in _PAIRS.items():
        for name in tensors:
            if name.endswith(ending) and name.removesuffix(ending) + other in tensors:
                return Quantised(kind, name.removesuffix(ending) + other)
    return next(filter(None, (_scaled(parts, tensors) for parts in modules.values())), None)


def _scaled(parts: Mapping[str, str], tensors: Mapping[str, tuple[str, int]]) -> Quantised | None:
    """Return the format of a module's matrices of FP8 numbers or integers, or None.

    Args:
        parts: last part of its tensors' names -> name.
        tensors: see ``find_quantised``.
    """
    for last, name in parts.items():
        dtype, axes = tensors[name]
        is_fp8, is_integer = dtype.startswith("F8"), dtype[0] in "IU"
        if axes < 2 or not (is_fp8 or (is_integer and last in _MATRICES)):
            continue
        scales = [other for other in parts if _SCALE.fullmatch(other) or other.startswith(f"{last}_scale")]
        if scales:
            return Quantised("FP8 with scales" if is_fp8 else "integers with scales", parts[scales[0]])
        if is_integer:
            return Quantised(f"{dtype} integers in a format that is not known", name)
    return None


def find_quantised_folder(folder: Path, config: Mapping[str, Any]) -> Quantised | None:
    """Return the format that the configuration of a folder says its weights are quantised in, or None.

    Args:
        folder: of a model.
        config: its ``config.json``.
    """
    for holder in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        for key in _KEYS:
            if isinstance(holder, Mapping) and holder.get(key):
                settings = holder[key]
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                return Quantised(str(method or "an unnamed format"), f"{key} in config.json")
    for name, kind in _FILES.items():
        if (folder / name).is_file():
            return Quantised(kind, name)
    return None


def check_not_quantised(label: str, quantised: Quantised | None) -> None:
    """Refuse quantised weights.

    Raises:
        CheckpointError: there are some; the message names the format.
    """
    if quantised is not None:
        raise CheckpointError(
            f"{label} is quantised: {quantised.format} ({quantised.evidence}). Its tensors have no mean without each "
            "other; expected plain floats. Take the model that it was quantised from, or dequantise it first."
        )
