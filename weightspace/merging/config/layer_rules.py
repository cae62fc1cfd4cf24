"""Rules for all keys of a configuration that determine properties of individual layers.

A rule gives one value per layer, so that slices know the properties of each of their layers. If the properties cannot
be expressed for the new order of layers (a period that slices break, code that uses the layer index), the caller
refuses the slices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from weightspace.merging.config.layer_lists import LayerRule, list_rules
from weightspace.merging.config.layer_types import layer_types, layer_types_rule, rope_rule, sliding_rule
from weightspace.merging.config.sections import Config, Side
from weightspace.merging.config.sparse_layers import sparse_rules

#: Keys of periods, unless a more specific rule applies or a list of layers takes precedence.
_PERIOD = re.compile(
    r"(?=\w*(layer|attn|attention|block|moe|expert|sparse|window))(\w+_)?"
    r"(interval|period|freq|frequency|every_n_layers|step|pattern)"
)
_BELOW = {
    "layer_types": ("sliding_window_pattern", "full_attention_interval", "global_attn_every_n_layers"),
    "no_rope_layers": ("no_rope_layer_interval",),
    "mlp_layer_types": ("moe_layer_freq", "decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step"),
    "moe_layers": ("interleave_moe_layer_step",),
    "first_k_dense_replace": ("moe_layer_freq",),
    "layers_block_type": ("attn_layer_period", "expert_layer_period"),
    "num_sparse_encoder_layers": ("encoder_sparse_step",),
    "num_sparse_decoder_layers": ("decoder_sparse_step",),
}

#: Model types whose code depends on the layer index, and those whose code also depends on the number of layers.
_BY_NUMBER = ("beam", "diffllama", "evolla", "zamba", "zamba2")
_BY_NUMBER_AND_COUNT = (
    *("esmc", "granite_speech_encoder", "granite_speech_plus_encoder", "granite_speech5_encoder"),
    *("idefics", "minimax"),
)


def layer_rules(section: Config, count: int, side: Side | None = None) -> list[LayerRule]:
    """Return the rules of a configuration section that describes a stack of layers.

    Args:
        section: the section.
        count: number of layers of the stack.
        side: whether the stack is the encoder or decoder of an encoder-decoder model.
    """
    rules = {rule.key: rule for rule in _special(section)}
    rules = {rule.key: rule for rule in list_rules(section, count, side)} | rules
    rules |= {rule.key: rule for rule in sparse_rules(section, side)}
    if "decoder_sparse_step" in rules:
        rules.pop("mlp_only_layers", None)
    below = {key for above, keys in _BELOW.items() if above in rules for key in keys}
    other = {"encoder": "decoder", "decoder": "encoder"}.get(side or "", " ")
    for key, value in section.items():
        if (
            type(value) is int
            and value > 1
            and _PERIOD.fullmatch(key)
            and key.lstrip("_") not in below
            and other not in key
        ):
            rules.setdefault(key, LayerRule(key, _phase(key)))
    return list(rules.values())


def _special(section: Config) -> Iterator[LayerRule]:
    """Yield the rules that are not lists with one entry per layer."""
    if isinstance(section.get("layer_types"), list) or layer_types(section, 1) is not None:
        yield layer_types_rule()
    yield from (rule for rule in (sliding_rule(section), rope_rule(section)) if rule is not None)
    if isinstance(section.get("attention_types"), list):
        yield LayerRule("attention_types", _expanded, lambda _, wanted: {"attention_types": [[wanted, 1]]})
    if isinstance(section.get("block_types"), list) and section["block_types"]:
        yield LayerRule("block_types", _repeated, lambda _, wanted: {"block_types": wanted})
    if isinstance(pattern := section.get("hybrid_override_pattern"), str) and pattern:
        yield LayerRule(
            "hybrid_override_pattern", _letters, lambda _, kinds: {"hybrid_override_pattern": "".join(kinds)}
        )
    if isinstance(section.get("per_layer_config"), dict):
        yield LayerRule("per_layer_config", _numbered, _rewrite_numbered)
    if isinstance(section.get("linear_attn_config"), dict) and "full_attn_layers" in section["linear_attn_config"]:
        yield LayerRule("linear_attn_config", _counted_from_1, _rewrite_counted_from_1)
    if isinstance(names := section.get("stage_names"), list) and names[:2] == ["stem", "stage1"]:
        yield LayerRule("out_indices", _stages, _rewrite_stages)
    if isinstance(section.get("scale_depth"), int | float):
        yield LayerRule("scale_depth", _depth_scale, _rewrite_depth_scale)
    if section.get("model_type") in _BY_NUMBER:
        yield LayerRule("model_type", _number)
    if section.get("scale_attn_by_inverse_layer_idx") is True:
        yield LayerRule("scale_attn_by_inverse_layer_idx", _number)
    if section.get("stagger_local_blocks") is True:  # in every second layer of PEGASUS-X
        yield LayerRule("stagger_local_blocks", lambda _, count: [layer % 2 for layer in range(count)])
    if section.get("model_type") in _BY_NUMBER_AND_COUNT:
        yield LayerRule("model_type", _number_and_count)
    if section.get("hidden_size_per_layer_input"):  # embeddings for all layers, in one tensor
        yield LayerRule("hidden_size_per_layer_input", _number_and_count)


def _number(_: Config, count: int) -> list[Any]:
    """Return the layer indices: layers cannot be reordered."""
    return list(range(count))


def _number_and_count(_: Config, count: int) -> list[Any]:
    """Return layer index and number of layers: the stack cannot be changed."""
    return [(layer, count) for layer in range(count)]


def _phase(key: str) -> Callable[[Config, int], list[Any] | None]:
    """Return a function that gives each layer's position in its period."""

    def values(config: Config, count: int) -> list[Any] | None:
        period = config.get(key)
        return [layer % period for layer in range(count)] if type(period) is int and period > 0 else None

    return values


def _expanded(config: Config, count: int) -> list[Any] | None:
    """Return GPT-Neo's ``[[["global", "local"], 2]]`` as one type per layer."""
    try:
        types = [kind for kinds, times in config["attention_types"] for _ in range(min(times, count)) for kind in kinds]
    except (KeyError, TypeError, ValueError):
        return None
    return types if len(types) == count else None


def _repeated(config: Config, count: int) -> list[Any] | None:
    """Return RecurrentGemma's pattern, repeated over the layers."""
    pattern = config.get("block_types")
    return [pattern[layer % len(pattern)] for layer in range(count)] if isinstance(pattern, list) and pattern else None


def _letters(config: Config, count: int) -> list[Any] | None:
    """Return Nemotron-H's pattern, one letter per layer."""
    pattern = config.get("hybrid_override_pattern")
    return list(pattern) if isinstance(pattern, str) and len(pattern) == count else None


def _numbered(config: Config, count: int) -> list[Any] | None:
    """Return the entries of an object that is keyed by layer index."""
    own = config.get("per_layer_config")
    return [own.get(str(layer)) for layer in range(count)] if isinstance(own, dict) else None


def _rewrite_numbered(_: Config, wanted: list[Any]) -> dict[str, Any]:
    return {"per_layer_config": {str(layer): own for layer, own in enumerate(wanted) if own is not None}}


def _counted_from_1(config: Config, count: int) -> list[Any] | None:
    """Return whether each layer has full attention, from Kimi Linear's lists, which count from 1."""
    own = config.get("linear_attn_config")
    listed = own.get("full_attn_layers") if isinstance(own, dict) else None
    return [layer + 1 in listed for layer in range(count)] if isinstance(listed, list) else None


def _rewrite_counted_from_1(config: Config, wanted: list[Any]) -> dict[str, Any]:
    full = [layer + 1 for layer, own in enumerate(wanted) if own]
    linear = [layer + 1 for layer, own in enumerate(wanted) if not own]
    return {"linear_attn_config": {**config["linear_attn_config"], "full_attn_layers": full, "kda_layers": linear}}


def _stages(config: Config, count: int) -> list[Any] | None:
    """Return, for each layer, its positions in a backbone's ``out_indices``, where 0 is the stem."""
    names, listed = config.get("stage_names"), config.get("out_indices")
    if not isinstance(names, list) or len(names) != count + 1 or not isinstance(listed, list):
        return None
    if listed == [count]:  # the last one, whichever it is
        return [[]] * count
    return [[place for place, number in enumerate(listed) if number == layer + 1] for layer in range(count)]


def _rewrite_stages(config: Config, wanted: list[Any]) -> dict[str, Any] | None:
    numbers = list(config["out_indices"])
    for place, number in enumerate(numbers):
        there = [layer + 1 for layer, places in enumerate(wanted) if place in places]
        if number == len(config["stage_names"]) - 1 and not there:
            there = [len(wanted)]
        if number > 0 and len(there) != 1:
            return None
        numbers[place] = there[0] if number > 0 else number
    names = ["stem", *(f"stage{number + 1}" for number in range(len(wanted)))]
    return {"stage_names": names, "out_indices": numbers, "out_features": [names[number] for number in numbers]}


def _depth_scale(config: Config, count: int) -> list[Any] | None:
    """Return the factor of each layer's output in MiniCPM."""
    scale = config.get("scale_depth")
    return [scale / math.sqrt(count)] * count if isinstance(scale, int | float) else None


def _rewrite_depth_scale(_: Config, wanted: list[Any]) -> dict[str, Any] | None:
    return {"scale_depth": wanted[0] * math.sqrt(len(wanted))} if len(set(wanted)) == 1 else None
