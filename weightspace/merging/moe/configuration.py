"""Derive a mixture's ``config.json`` from that of its dense base.

Defaults of the dense model's class are written out explicitly, since the mixture's class has different defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weightspace.errors import CheckpointError
from weightspace.merging.moe.architectures import Architecture
from weightspace.merging.moe.recipe import MixtureRecipe

#: Required keys of a dense configuration.
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

#: Model type -> defaults of its class in transformers. A window of None means full attention.
_COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0}
_QWEN: dict[str, Any] = {
    **{"max_position_embeddings": 32768, "num_key_value_heads": 32, "bos_token_id": None, "eos_token_id": None},
    **{"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_COMMON, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        **_COMMON,
        **{"max_position_embeddings": 131072, "num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
        "sliding_window": 4096,
    },
    "qwen2": {**_COMMON, **_QWEN},
    "qwen3": {**_COMMON, **_QWEN, "head_dim": 128},
}

#: Keys of the dense model that do not apply to the mixture.
_DROPPED = (
    *("auto_map", "pretraining_tp", "mlp_bias", "layer_types", "sliding_window", "use_sliding_window"),
    *("max_window_layers", "_name_or_path", "quantization_config", "compression_config"),
)

#: Hub repository of DeepSeek's model code.
_DEEPSEEK = "deepseek-ai/deepseek-moe-16b-base--"


def mixture_configuration(
    architecture: Architecture,
    dense: Mapping[str, Any],
    recipe: MixtureRecipe,
    dtype: str,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Return the configuration of a mixture.

    Args:
        architecture: the mixture's architecture.
        dense: the base's configuration.
        recipe: the mixture's recipe.
        dtype: dtype of its tensors.
        note: called with a one-line message about each property of the base that the mixture cannot keep.

    Raises:
        CheckpointError: the base's configuration lacks a size, or has a setting that the mixture's class does not
            support.
    """
    for key in _NEEDED:
        if not isinstance(dense.get(key), int) or isinstance(dense.get(key), bool):
            raise CheckpointError(f"config.json of {recipe.base}: {key} is {dense.get(key)!r}, expected an integer.")
    filled = _filled(dense)
    config = {key: value for key, value in filled.items() if key not in _DROPPED}
    if architecture.name in ("Mixtral", "Qwen MoE"):
        config.pop("attention_bias", None)
    config |= {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "num_experts_per_tok": recipe.experts_per_token,
    }
    config |= _OWN[architecture.name](filled, recipe, note)
    config.pop("torch_dtype", None)
    config.pop("dtype", None)
    return {**config, "torch_dtype": dtype}


def _filled(dense: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dense configuration completed by the defaults of its class."""
    filled = {key: value for key, value in dense.items() if not (key == "head_dim" and value is None)}
    for key, default in _DEFAULTS[str(dense["model_type"])].items():
        if key == "rope_theta" and isinstance(filled.get("rope_parameters"), dict):
            continue
        filled.setdefault(key, default)
    if filled.get("num_key_value_heads") is None:
        filled["num_key_value_heads"] = filled["num_attention_heads"]
    return filled


def _windows(dense: Mapping[str, Any]) -> tuple[int | None, list[bool]]:
    """Return the length of a dense model's sliding window, and whether each layer uses it."""
    layers, window = int(dense["num_hidden_layers"]), dense.get("sliding_window")
    if dense["model_type"] == "mistral":
        return window, [window is not None] * layers
    if not dense.get("use_sliding_window") or window is None:
        return None, [False] * layers
    types = dense.get("layer_types")
    if isinstance(types, list):
        return window, [one == "sliding_attention" for one in types]
    first = int(dense.get("max_window_layers") or 0)
    return window, [layer >= first for layer in range(layers)]


def _one_window(dense: Mapping[str, Any], note: Callable[[str], None], name: str) -> int | None:
    """Return the sliding window if all layers use it; if only some do, drop it with a message."""
    window, layers = _windows(dense)
    if any(layers) and not all(layers):
        _note_dropped_window(window, note, f"{name} uses one window for all layers, but only some layers have it")
        return None
    return window if all(layers) else None


def _note_dropped_window(window: int | None, note: Callable[[str], None], reason: str) -> None:
    note(f"The base's sliding window of {window:,} tokens is dropped: {reason}. All layers use full attention.")


def _mixtral(dense: Mapping[str, Any], recipe: MixtureRecipe, note: Callable[[str], None]) -> dict[str, Any]:
    return {"num_local_experts": len(recipe.experts), "sliding_window": _one_window(dense, note, "Mixtral")}


def _qwen2(dense: Mapping[str, Any], recipe: MixtureRecipe, _: Callable[[str], None]) -> dict[str, Any]:
    window, layers = _windows(dense)
    sliding: dict[str, Any] = {"use_sliding_window": any(layers), "sliding_window": window if any(layers) else None}
    if any(layers):
        sliding |= {
            "max_window_layers": len(layers),
            "layer_types": ["sliding_attention" if has else "full_attention" for has in layers],
        }
    return {
        **_qwen_experts(dense, recipe),
        "shared_expert_intermediate_size": dense["intermediate_size"],
        "qkv_bias": True,
        **sliding,
    }


def _qwen3(dense: Mapping[str, Any], recipe: MixtureRecipe, note: Callable[[str], None]) -> dict[str, Any]:
    window = _one_window(dense, note, "Qwen3 MoE")
    return {**_qwen_experts(dense, recipe), "use_sliding_window": window is not None, "sliding_window": window}


def _qwen_experts(dense: Mapping[str, Any], recipe: MixtureRecipe) -> dict[str, Any]:
    return {
        "num_experts": len(recipe.experts),
        "moe_intermediate_size": dense["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _deepseek(dense: Mapping[str, Any], recipe: MixtureRecipe, note: Callable[[str], None]) -> dict[str, Any]:
    """Return the keys of the first DeepSeek MoE, which has Llama's attention, for DeepSeek's own model code."""
    rope = dense.get("rope_parameters")
    if not isinstance(rope, dict):
        rope = {"rope_theta": dense["rope_theta"], **(dense.get("rope_scaling") or {})}
    rope = dict(rope)
    theta, kind = rope.pop("rope_theta", 10000.0), rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "dynamic"):
        raise CheckpointError(
            f"{recipe.base} uses rope scaling {kind!r}, which DeepSeek MoE does not support; expected 'linear' or "
            "'dynamic'. Choose another architecture (`architecture: mixtral`)."
        )
    size = dense["hidden_size"] // dense["num_attention_heads"]
    if dense.get("head_dim", size) != size:
        raise CheckpointError(
            f"{recipe.base} has head_dim {dense['head_dim']}; DeepSeek MoE expects hidden_size / num_attention_heads, "
            f"{size}."
        )
    window, layers = _windows(dense)
    if any(layers):
        _note_dropped_window(window, note, "DeepSeek MoE does not support one")
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, "factor": rope["factor"]},
        "n_routed_experts": len(recipe.experts),
        "n_shared_experts": len(recipe.shared) or None,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": dense["intermediate_size"],
        "auto_map": {
            "AutoConfig": f"{_DEEPSEEK}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{_DEEPSEEK}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{_DEEPSEEK}modeling_deepseek.DeepseekForCausalLM",
        },
    }


_OWN: Mapping[str, Callable[..., dict[str, Any]]] = {
    "Mixtral": _mixtral,
    "DeepSeek MoE": _deepseek,
    "Qwen MoE": _qwen2,
    "Qwen3 MoE": _qwen3,
}
