"""Tensors in which the experts of a layer are fused, and the matrices that they consist of.

transformers reads FP8 experts matrix by matrix. A fused tensor it would read without its scales where it dequantises
it, as on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Values of ``model_type`` of networks whose ``gate_up_proj`` are those of ``gate_proj`` and ``up_proj``, row by row,
#: and of which transformers reads both forms.
FAMILIES = frozenset(
    {
        *("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text", "olmoe", "flex_olmo"),
        *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa"),
        *("dots1", "ernie4_5_moe", "exaone_moe", "hunyuan_v1_moe", "longcat_flash", "mimo_v2_flash", "solar_open"),
    }
)

#: Last part of a fused tensor's name -> the projections in each expert.
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def is_fused(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor holds the matrices of all experts of a layer, by its name and shape."""
    module, _, last = name.rpartition(".")
    return module.endswith("experts") and last in _PROJECTIONS and len(shape) == 3


def expert_matrices(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the matrices in a fused tensor, in order.

    Args:
        name: name of the tensor.
        shape: its shape.
        config: the configuration of the network.

    Returns:
        Names such as ``model.layers.0.mlp.experts.7.gate_proj.weight``; none if the tensor isn't fused, or if it is
        unknown how.
    """
    module, _, last = name.rpartition(".")
    section = config.get("text_config")
    text = section if isinstance(section, Mapping) else config
    if not is_fused(name, shape) or text.get("model_type") not in FAMILIES:
        return ()
    hidden, inner = text.get("hidden_size"), text.get("moe_intermediate_size", text.get("intermediate_size"))
    rows = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)} if isinstance(inner, int) else {}
    if shape[1:] != rows.get(last):
        return ()
    return tuple(f"{module}.{expert}.{part}.weight" for expert in range(shape[0]) for part in _PROJECTIONS[last])
