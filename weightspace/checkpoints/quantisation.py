"""Detection of quantised weights by the names and dtypes of their tensors and by files beside them.

A quantised matrix is stored as several tensors (packed integers or FP8 numbers, scales, zero points, code books). Its
value is a function of all of them, so averaging each doesn't average the matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weightspace.errors import CheckpointError


class Quantised(NamedTuple):
    """The format of quantised weights, and the tensor or file that reveals it."""

    format: str
    evidence: str


#: Last part of a tensor's name that occurs in no other networks -> the format.
_MARKS: Mapping[str, str] = {
    "weight_scale_2": "NVFP4",
    "weight_global_scale": "NVFP4 (compressed-tensors)",
    "weight_scale_inv": "FP8 with block scales",
    "scaled_fp8": "FP8 with scales (ComfyUI)",
    "comfy_quant": "ComfyUI",
    "SCB": "bitsandbytes 8-bit",
    "Qidxs": "QuIP#",
    "Qidxs_0": "QuIP#",
    "_packed_params": "torch.ao.quantization",
}

#: Last parts of names that occur together in a module, the first with packed integers -> the format. As floats, they
#: mean something else: ``W_q`` may be the query matrix, and ``g_idx`` of a graph network stands alone.
_PACKED: Mapping[tuple[str, ...], str] = {
    ("qweight", "g_idx"): "GPTQ",
    ("qweight", "qzeros"): "AWQ or GPTQ",
    ("qweight", "wscales"): "SVDQuant (nunchaku)",
    ("qweight", "lookup_table"): "SqueezeLLM",
    ("qweight",): "packed integers",
    ("weight_packed",): "compressed-tensors",
    ("W_q",): "HQQ",
    ("q_weight", "q_scale"): "EXL2",
    ("trellis", "suh"): "EXL3",
    ("trellis", "SU"): "QTIP",
    ("codes", "codebooks", "scales"): "AQLM",
    ("B", "s"): "Marlin",
    ("B_24", "s"): "Marlin (2:4)",
    ("bitmask", "compressed"): "compressed-tensors (sparse)",
    ("weight", "weights_scaling_factor"): "TensorRT-LLM",
    ("weight", "per_channel_scale"): "TensorRT-LLM",
    ("weight", "scales", "biases"): "MLX",
    ("_data", "_scale"): "quanto or torchao",
    ("_data", "_scale_inv"): "Transformer Engine FP8",
}

#: The same, without the requirement of integers of less than 64 bits.
_MODULES: Mapping[tuple[str, ...], str] = {
    ("absmax", "quant_map"): "bitsandbytes 4-bit",
    ("dense_weights", "row_offsets", "col_vals"): "SpQR",
}

#: Endings of two names that are otherwise equal, the first with packed integers -> the format.
_PAIRS: Mapping[tuple[str, str], str] = {
    ("_blocks", "_scales"): "MXFP4",
    (".blocks", ".scales"): "MXFP4",
    (".weight", ".weight_scales"): "EETQ",
    (".indices", ".centroids.weight"): "VPTQ",
}

#: Formats whose tensors are only understood with their description in the configuration.
_DESCRIBED = ("GPTQ", "AWQ or GPTQ", "compressed-tensors")

#: Files beside the weights of a folder that indicate quantisation.
QUANTISATION_FILES: Mapping[str, str] = {
    "hf_quant_config.json": "ModelOpt (FP8 or NVFP4)",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
}

#: Keys of a configuration, or of a part of it, that describe the quantisation; the last one is MLX's.
_KEYS = ("quantization_config", "compression_config", "quantization")
_METHODS = {"quantization": "MLX"}

#: Nesting depth of the parts of a configuration.
_DEPTH = 5

#: Names of scales beside FP8 numbers and integers: ``weight_scale``, ``scale_input``,
#: ``weights_scaling_factor``, ``_weight_zero_point``, ``k_scale``, but not ``logit_scale``.
_SCALES = frozenset({"scale", "scales", "scaling", "descale", "amax", "absmax", "zero", "zeros"})
_OF = frozenset(
    {
        *("weight", "weights", "w", "input", "output", "activation", "act", "k", "v", "q", "kv", "per", "channel"),
        *("tensor", "token", "block", "group", "point", "points", "inv", "factor", "ub", "prequant"),
    }
)

#: Names of matrices.
_MATRICES = ("weight", "gate_up_proj", "down_proj")

#: Words in the names of integer tensors that identify them as matrices.
_PACKED_WORDS = frozenset({"weight", "qdata", "quantized", "packed", "kernel", "int"})


def find_quantised(tensors: Mapping[str, tuple[str, int]]) -> Quantised | None:
    """Return the quantisation format of tensors, or None if they aren't quantised.

    Args:
        tensors: name -> the safetensors name of its dtype, and its number of axes.
    """
    modules: dict[str, dict[str, str]] = {}
    narrow: dict[str, None] = {}  # modules with dtypes other than floats of at least 16 bits
    for name, (dtype, _) in tensors.items():
        module, _, last = name.replace(":", ".").rpartition(".")  # torchao's files have ``weight:_data``
        if last in _MARKS:
            return Quantised(_MARKS[last], name)
        modules.setdefault(module, {})[last] = name
        if dtype == "F8_E8M0":
            return Quantised("scales that are powers of two (E8M0)", name)
        if dtype[0] in "IU" or dtype.startswith("F8"):
            narrow[module] = None
    lasts = {last for parts in modules.values() for last in parts}
    possible = [(marks, kind) for marks, kind in (*_PACKED.items(), *_MODULES.items()) if lasts.issuperset(marks)]
    for parts in modules.values() if possible else ():
        for marks, kind in possible:
            if all(mark in parts for mark in marks) and (marks in _MODULES or _is_packed(tensors[parts[marks[0]]])):
                return Quantised(kind, parts[marks[0]])
    for (ending, other), kind in _PAIRS.items():
        for name in tensors:
            scales = name.removesuffix(ending) + other
            if name.endswith(ending) and scales in tensors and _is_packed(tensors[name]):
                return Quantised(kind, scales)
    return next(filter(None, (_scaled(modules[module], tensors, modules) for module in narrow)), None)


def _is_packed(info: tuple[str, int]) -> bool:
    """Return whether a tensor has a dtype of quantised weights: FP8, or integers of at most 32 bits."""
    dtype, axes = info
    return axes > 0 and (dtype.startswith("F8") or (dtype[0] in "IU" and not dtype.endswith("64")))


def _scaled(
    parts: Mapping[str, str], tensors: Mapping[str, tuple[str, int]], modules: Mapping[str, Mapping[str, str]]
) -> Quantised | None:
    """Return the format of a module's matrices of FP8 numbers or integers, or None.

    Args:
        parts: last part of a tensor's name in the module -> full name.
        tensors: see ``find_quantised``.
        modules: the parts of each module.
    """
    for last, name in parts.items():
        dtype, axes = tensors[name]
        is_fp8, is_matrix = dtype.startswith("F8"), dtype[0] in "IU" and last in _MATRICES
        if axes < 2 or not (is_fp8 or is_matrix or _is_packed(tensors[name])):
            continue
        weighs = last in _MATRICES or not _PACKED_WORDS.isdisjoint(_words(last))
        scales = [other for key, other in parts.items() if _is_scale(key, last, weighs=weighs, is_fp8=is_fp8)]
        scales += [other for key, other in modules.get(name, {}).items() if _is_named_scale(key)]
        if scales:
            return Quantised("FP8 with scales" if is_fp8 else "integers with scales", scales[0])
        if is_matrix:
            return Quantised(f"{dtype} integers in a format that is not known", name)
    return None


def _is_scale(name: str, last: str, *, weighs: bool, is_fp8: bool) -> bool:
    """Return whether a tensor is the scale of another one in its module.

    Args:
        name: last part of its name.
        last: last part of the other one's name.
        weighs: whether the other one is named like a matrix.
        is_fp8: whether the other one has an FP8 dtype.
    """
    if name.startswith(f"{last}_scale"):
        return True
    is_bare = len(_words(name)) == 1  # ``scale`` applies to the whole module
    return name != last and _is_named_scale(name) and (weighs or (is_fp8 and not is_bare))


def _is_named_scale(name: str) -> bool:
    """Return whether the last part of a name is typical of scales of quantised weights."""
    own = _words(name)
    return not own.isdisjoint(_SCALES) and own <= _SCALES | _OF


def _words(name: str) -> frozenset[str]:
    return frozenset(filter(None, re.split(r"[^a-z]+", name.lower())))


def find_quantised_folder(folder: Path, config: Mapping[str, Any]) -> Quantised | None:
    """Return the quantisation format given by the configuration of a folder, or None.

    Args:
        folder: a model's folder.
        config: content of its ``config.json``.
    """
    for key, settings in quantisation_settings(config):
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        return Quantised(str(method or _METHODS.get(key, "an unnamed format"))[:80], f"{key} in config.json")
    for name, kind in QUANTISATION_FILES.items():
        if (folder / name).is_file():
            return Quantised(kind, name)
    return None


def quantisation_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the key and value of every quantisation entry of a configuration and its parts."""
    yield from ((key, part[key]) for part, key in quantised_parts(config))


def quantised_parts(config: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield the parts of a configuration that have a quantisation entry, each with the key of the entry."""
    for part in _parts(config):
        for key in _KEYS:
            settings = part.get(key)
            if settings and (key != "quantization" or (isinstance(settings, Mapping) and "bits" in settings)):
                yield part, key


def _parts(config: Mapping[str, Any], depth: int = _DEPTH) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and its nested objects: ``text_config``, ``thinker_config.text_config``, ``decoder``."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping) and depth:
            yield from _parts(value, depth - 1)


def check_not_quantised(label: str, quantised: Quantised | None) -> None:
    """Check that weights aren't quantised.

    Raises:
        CheckpointError: they are; the message names the format.
    """
    if quantised is not None:
        needed = " This format is only read in a folder whose config.json describes it (bits, group size)."
        raise CheckpointError(
            f"{label} is quantised: {quantised.format} ({quantised.evidence}). Its tensors cannot be averaged "
            "individually; expected plain floats. Use the model that it was quantised from, or dequantise it first."
            f"{needed if quantised.format in _DESCRIBED else ''}"
        )
