"""Attention types of layers that are implied by the model type: sliding windows, linear attention, rotary embeddings.

Configurations of older releases of transformers, and many on the Hub, state only a period or nothing at all; the period
then defaults to that of the model type. If slices break the period, the types are written out as ``layer_types``.

Source: the configuration classes of transformers (``__post_init__``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.merging.config.layer_lists import LayerRule
from weightspace.merging.config.sections import Config

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"

#: Model type -> type of most layers, key of the period of full-attention layers, default period.
_PERIODS: Mapping[str, tuple[str, str | None, int]] = {
    "gemma2": (_SLIDING, None, 2),
    "vaultgemma": (_SLIDING, None, 2),
    "t5gemma": (_SLIDING, None, 2),
    "t5_gemma_module": (_SLIDING, None, 2),
    "gpt_oss": (_SLIDING, None, 2),
    "gemma3_text": (_SLIDING, "sliding_window_pattern", 6),
    "gemma3": (_SLIDING, "sliding_window_pattern", 6),
    "gemma3n_text": (_SLIDING, None, 5),
    "gemma4_text": (_SLIDING, None, 6),
    "cohere2": (_SLIDING, "sliding_window_pattern", 4),
    "olmo3": (_SLIDING, None, 4),
    "exaone4": (_SLIDING, "sliding_window_pattern", 4),
    "afmoe": (_SLIDING, "global_attn_every_n_layers", 4),
    "qwen3_next": (_LINEAR, "full_attention_interval", 4),
    "qwen3_5_text": (_LINEAR, "full_attention_interval", 4),
    "qwen3_5_moe_text": (_LINEAR, "full_attention_interval", 4),
}

#: Model types whose first layer, and every n-th layer after it, has full attention.
_FIRST_FULL: Mapping[str, tuple[str, int]] = {
    "modernbert": ("global_attn_every_n_layers", 3),
    "modernbert-decoder": ("global_attn_every_n_layers", 3),
    "cwm": ("", 4),
    "granite_swa": ("", 4),
    "granitemoe_swa": ("", 4),
}

#: Model types whose layers from ``max_window_layers`` on have a sliding window.
_UPPER_SLIDING = ("qwen2", "qwen3", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni_text")

#: Model types whose last layer always has full attention.
_LAST_IS_FULL = ("gemma4", "gemma4_text", "gemma4_unified_text")

#: Model types whose layers all use the configured sliding window.
_ALL_SLIDING = (
    *("mistral", "mixtral", "ministral", "ministral3", "phi3", "phi4_multimodal", "phimoe", "starcoder2", "dots1"),
    *("kyutai_speech_to_text", "mimi", "moshi", "moshi_depth", "voxtral_realtime_text", "voxtral_realtime_encoder"),
    *("openai_privacy_filter", "cohere_compass_text", "laguna", "mellum"),
)

#: Model types without rotary embedding in every n-th layer -> default of n.
_ROPE_INTERVALS = {"smollm3": 4, "llama4_text": 4}


def layer_types(config: Config, count: int) -> list[str] | None:
    """Return the attention type of each layer, from ``layer_types`` or the model type; None if neither gives one."""
    listed = config.get("layer_types")
    if isinstance(listed, list):
        return list(listed) if len(listed) == count else None
    kind = str(config.get("model_type"))
    if kind in _PERIODS:
        most, key, default = _PERIODS[kind]
        types = _every(config.get(key, default) if key else default, most, count, first=False)
        return [*types[:-1], _FULL] if types and kind in _LAST_IS_FULL else types
    if kind in _FIRST_FULL:
        key, default = _FIRST_FULL[kind]
        return _every(config.get(key, default) if key else default, _SLIDING, count, first=True)
    if kind in _UPPER_SLIDING:
        first = config.get("max_window_layers", 28) if config.get("use_sliding_window") else count
        return [_SLIDING if layer >= first else _FULL for layer in range(count)] if type(first) is int else None
    if kind == "minimax":
        return [_LINEAR if layer % 2 else _FULL for layer in range(count)]
    if kind == "lfm2" and isinstance(config.get("full_attn_idxs"), list):
        return [_FULL if layer in config["full_attn_idxs"] else "conv" for layer in range(count)]
    return None


def _every(period: Any, most: str, count: int, *, first: bool) -> list[str] | None:
    """Return types with full attention in every n-th layer, starting at the first or n-th; None without a period."""
    length = len(period) if isinstance(period, str) else period  # "LLLG"
    if type(length) is not int or length < 1:
        return None
    return [most if (layer if first else layer + 1) % length else _FULL for layer in range(count)]


def layer_types_rule() -> LayerRule:
    """Return the rule of the attention types."""

    def rewrite(config: Config, wanted: list[Any]) -> dict[str, Any] | None:
        followed = config.get("model_type") not in _LAST_IS_FULL or wanted[-1] == _FULL
        return {"layer_types": wanted} if followed else None

    return LayerRule("layer_types", layer_types, rewrite)


def sliding_rule(config: Config) -> LayerRule | None:
    """Return the rule of a sliding window if it is unknown which layers use it, or None if it is known."""
    window, kind = config.get("sliding_window"), config.get("model_type")
    if type(window) is not int or window < 1 or config.get("use_sliding_window") is False or not kind:
        return None
    if kind in _ALL_SLIDING or isinstance(config.get("layer_types"), list) or layer_types(config, 1) is not None:
        return None
    return LayerRule("sliding_window", lambda _, count: list(range(count)))


def rope_rule(config: Config) -> LayerRule | None:
    """Return the rule of layers without rotary embedding; None for model types without such layers."""
    default = _ROPE_INTERVALS.get(str(config.get("model_type")))
    if default is None:
        return None

    def values(config: Config, count: int) -> list[int] | None:
        listed = config.get("no_rope_layers")
        if listed:
            return list(listed) if isinstance(listed, list) and len(listed) == count else None
        interval = config.get("no_rope_layer_interval", default)
        return [int((layer + 1) % interval != 0) for layer in range(count)] if type(interval) is int else None

    return LayerRule("no_rope_layers", values, lambda _, wanted: {"no_rope_layers": wanted})
