"""The tensors beside a quantised matrix in its module: those that don't affect its values, and those that might."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from weightspace.checkpoints.metadata import TensorInfo

#: Scales of activations and of the KV cache, which don't affect the weights.
LEFT_OUT = frozenset(
    {
        *("input_scale", "scale_input", "activation_scale", "input_activation_scale", "output_scale", "qscale_act"),
        *("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "input_global_scale", "input_scale_ub"),
        *("gate_up_proj_input_scale", "down_proj_input_scale"),
    }
)

#: Words in the names of tensors that might change the values of a matrix beside them.
_WORDS = frozenset(
    {
        *("scale", "scales", "scaling", "scb", "absmax", "amax", "zero", "zeros", "qzeros", "zp", "perm", "idx"),
        *("shape", "smooth", "hadamard", "rotation", "quant", "prequant", "codebook", "quantizer", "svd", "low"),
        *("lut", "smoother"),
    }
)


def is_activation_scale(name: str) -> bool:
    """Return whether a tensor is a scale of activations or of the KV cache, by its name."""
    return name.rpartition(".")[2] in LEFT_OUT or name.endswith("kv_cache.scale")


def activation_scales(parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of a module's scales of activations and of the KV cache."""
    return tuple(name for last, name in parts.items() if last in LEFT_OUT)


def is_understood(parts: Mapping[str, str], known: Collection[str]) -> bool:
    """Return whether a module has no further tensor that might change the values of its matrix.

    Args:
        parts: last part of the name -> name, for the tensors of the module.
        known: last parts of the names that a format reads.
    """
    others = [last for last in parts if last not in known and last not in LEFT_OUT]
    return all(_WORDS.isdisjoint(filter(None, re.split(r"[^a-z]+", last.lower()))) for last in others)


def is_power_of_two(info: TensorInfo) -> bool:
    """Return whether a tensor of scales holds E8M0 numbers, as such or as bytes."""
    return info.dtype in ("F8_E8M0", "U8")


def is_fp8(info: TensorInfo) -> bool:
    """Return whether a tensor holds E4M3 or E5M2 numbers."""
    return info.dtype in ("F8_E4M3", "F8_E5M2")
