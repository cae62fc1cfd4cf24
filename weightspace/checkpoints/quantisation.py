"""Quantised weights, recognised by the names and dtypes of their tensors and by what lies beside them.

A quantised matrix is spread over several tensors (packed integers or FP8 numbers, scales, zero points, code books). Its
value is a function of all of them: the mean of each is not the mean of the matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
    "weight_scale_inv": "FP8 with block scales",
    "scaled_fp8": "FP8 with scales (ComfyUI)",
    "comfy_quant": "ComfyUI",
    "SCB": "bitsandbytes 8-bit",
    "Qidxs": "QuIP#",
    "Qidxs_0": "QuIP#",
    "_packed_params": "torch.ao.quantization",
}

#: Last parts of names that one module has together, the first of packed integers -> the format. Of floats they mean
#: something else: ``W_q`` may be the matrix of the queries, ``g_idx`` of a graph network stands alone.
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
    ("_data", "_scale"): "quanto or torchao",
    ("_data", "_scale_inv"): "Transformer Engine FP8",
}

#: The same, of which no part need be of integers of less than 64 bits.
_MODULES: Mapping[tuple[str, ...], str] = {
    ("absmax", "quant_map"): "bitsandbytes 4-bit",
    ("dense_weights", "row_offsets", "col_vals"): "SpQR",
}

#: Endings of two tensors that are alike up to them, the first of packed integers -> the format.
_PAIRS: Mapping[tuple[str, str], str] = {
    ("_blocks", "_scales"): "MXFP4",
    (".blocks", ".scales"): "MXFP4",
    (".weight", ".weight_scales"): "EETQ",
    (".indices", ".centroids.weight"): "VPTQ",
}

#: Files beside the weights of a folder that say that they are quantised.
_FILES: Mapping[str, str] = {
    "hf_quant_config.json": "ModelOpt (FP8 or NVFP4)",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
}

#: Keys of a configuration, or of a part of it, that hold how the weights are quantised; the last one is MLX's.
_KEYS = ("quantization_config", "compression_config", "quantization")
_METHODS = {"quantization": "MLX"}

#: How deep the parts of a configuration are nested.
_DEPTH = 5

#: What scales of FP8 numbers and of integers are called beside them: ``weight_scale``, ``scale_input``,
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

#: Words in the names of integers that are matrices, whatever else they are called.
_PACKED_WORDS = frozenset({"weight", "qdata", "quantized", "packed", "kernel", "int"})


def find_quantised(tensors: Mapping[str, tuple[str, int]]) -> Quantised | None:
    """Return the format that tensors are quantised in, None where they are plain.

    Args:
        tensors: name -> the safetensors name of its dtype, and its number of axes.
    """
    modules: dict[str, dict[str, str]] = {}
    narrow: dict[str, None] = {}  # modules with numbers that are no floats of 16 bits or more
    for name, (dtype, _) in tensors.items():
        module, _, last = name.replace(":", ".").rpartition(".")  # torchao's files have ``weight:_data``
        if last in _MARKS:
            return Quantised(_MARKS[last], name)
        modules.setdefault(module, {})[last] = name
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
    """Return whether a tensor is of numbers that quantised weights are kept as: FP8, integers of 32 bits or less."""
    dtype, axes = info
    return axes > 0 and (dtype.startswith("F8") or (dtype[0] in "IU" and not dtype.endswith("64")))


def _scaled(
    parts: Mapping[str, str], tensors: Mapping[str, tuple[str, int]], modules: Mapping[str, Mapping[str, str]]
) -> Quantised | None:
    """Return the format of a module's matrices of FP8 numbers or integers, or None.

    Args:
        parts: last part of its tensors' names -> name.
        tensors: see ``find_quantised``.
        modules: the parts of every module.
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
        last: that of the other one.
        weighs: the other one is called as matrices are.
        is_fp8: the other one is of FP8 numbers.
    """
    if name.startswith(f"{last}_scale"):
        return True
    is_bare = len(_words(name)) == 1  # ``scale``: of the module, whatever is in it
    return name != last and _is_named_scale(name) and (weighs or (is_fp8 and not is_bare))


def _is_named_scale(name: str) -> bool:
    """Return whether the last part of a name is what scales of quantised weights are called."""
    own = _words(name)
    return not own.isdisjoint(_SCALES) and own <= _SCALES | _OF


def _words(name: str) -> frozenset[str]:
    return frozenset(filter(None, re.split(r"[^a-z]+", name.lower())))


def find_quantised_folder(folder: Path, config: Mapping[str, Any]) -> Quantised | None:
    """Return the format that the configuration of a folder says its weights are quantised in, or None.

    Args:
        folder: of a model.
        config: its ``config.json``.
    """
    for part in _parts(config):
        for key in _KEYS:
            settings = part.get(key)
            if settings and (key != "quantization" or (isinstance(settings, Mapping) and "bits" in settings)):
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                return Quantised(str(method or _METHODS.get(key, "an unnamed format"))[:80], f"{key} in config.json")
    for name, kind in _FILES.items():
        if (folder / name).is_file():
            return Quantised(kind, name)
    return None


def _parts(config: Mapping[str, Any], depth: int = _DEPTH) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and the objects in it: ``text_config``, ``thinker_config.text_config``, ``decoder``."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping) and depth:
            yield from _parts(value, depth - 1)


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
