"""Lists in a configuration that refer to layers: one entry per layer, or the indices of certain layers.

Lists are recognised by their keys and lengths. A list that may have one entry per layer, without evidence from its key,
cannot be rewritten: slices that would change it are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.merging.config.sections import Config, Side
from weightspace.merging.config.towers import words


@dataclass(frozen=True)
class LayerRule:
    """A key of a configuration that determines a property of each layer.

    Attributes:
        key: the key, as named in errors.
        values: (configuration, number of layers) -> one value per layer, or None if the key does not apply.
        rewrite: (configuration, new values per layer) -> keys to change, or None if the key cannot express the values.
        optional: whether another list takes precedence, so that the rule may be dropped if it cannot be rewritten.
    """

    key: str
    values: Callable[[Config, int], list[Any] | None]
    rewrite: Callable[[Config, list[Any]], dict[str, Any] | None] = lambda _config, _values: None
    optional: bool = False


#: Words in keys of lists with one entry per layer, and words in keys of other lists.
_PER_LAYER = frozenset(
    {
        *("layer", "layers", "block", "blocks", "attn", "attention", "mlp", "moe", "expert", "experts", "ffn", "rope"),
        *("window", "windows", "pattern", "type", "types", "heads", "kv", "sparsity", "intermediate", "multipliers"),
    }
)
_NEVER = frozenset(
    {
        *("token", "tokens", "architectures", "section", "sections", "image", "patch", "grid", "kernel", "stride"),
        *("strides", "conv", "dilation", "language", "languages", "label", "labels", "mean", "std", "channels"),
        *("ratios", "pinpoints", "keys", "features", "stage", "depths", "mtp", "nextn", "modules", "crop", "tile"),
        *("tasks", "suppress", "resolution", "resolutions", "tdnn", "hidden", "pool", "feature", "stages", "indices"),
    }
)

#: Keys that list indices of layers, counted from 0.
_NUMBERS = re.compile(
    r"(\w*_)?(layers?|blocks?|attn|attention)_(ids?|idxs?|indices|indexes)|(mlp_only|moe|dense|skip|cross_attention)_layers"
    r"|rope_scaling_layers|look_(ahead|backward)_layers|fullatt_block_indexes"
)

#: Keys that list layers whose outputs are used elsewhere, in order.
_READ = re.compile(
    r"deepstack_visual_indexes|intermediate_layers_indices|extract_layers|vision_(feature|aux)_layers?"
    r"|(spatial_target|cat_hidden|subsample)_layers|intermediate_hidden_state_indices|insert_layer_id"
)


def list_rules(section: Config, count: int, side: Side | None = None) -> Iterator[LayerRule]:
    """Yield the rules of the lists in a section of a configuration.

    Args:
        section: the section.
        count: number of layers of the stack.
        side: whether the stack is the encoder or decoder of an encoder-decoder model.
    """
    other = {"encoder": "decoder", "decoder": "encoder"}.get(side or "")
    for key, value in section.items():
        own = set(words(key))
        if not isinstance(value, list | int) or isinstance(value, bool) or other in own or own & {"mtp", "nextn"}:
            continue
        if side == "decoder" and key == "attention_window":  # of the encoder's layers, in LED
            continue
        if _READ.fullmatch(key):
            yield LayerRule(key, _reads(key), _rewrite_reads(key))
        elif isinstance(value, list) and _NUMBERS.fullmatch(key):
            yield _numbers(key)
        elif isinstance(value, list) and len(value) == count and value and not own & _NEVER:
            known = own & _PER_LAYER and not own & {"source", "target"}
            yield _per_layer(key) if known else LayerRule(key, _entries(key))


def wrong_length(section: Config, count: int) -> str | None:
    """Return a key whose list should have one entry per layer but has another length, or None."""
    for key in ("layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers", "layers_block_type"):
        if isinstance(section.get(key), list) and section[key] and len(section[key]) != count:
            return key
    return None


def _numbers(key: str) -> LayerRule:
    """Return the rule of a key that lists indices of layers, counted from 0."""

    def values(config: Config, count: int) -> list[Any] | None:
        listed = config.get(key)
        if not isinstance(listed, list) or not all(type(number) is int for number in listed):
            return None
        if not all(0 <= number < count for number in listed):  # counted from 1, or of other layers
            return list(range(count))
        own = set(listed)
        return [number in own for number in range(count)]

    def rewrite(_: Config, wanted: list[Any]) -> dict[str, Any] | None:
        if not all(isinstance(own, bool) for own in wanted):
            return None
        return {key: [number for number, own in enumerate(wanted) if own]}

    return LayerRule(key, values, rewrite)


def _per_layer(key: str) -> LayerRule:
    return LayerRule(key, _entries(key), lambda _, wanted: {key: wanted})


def _entries(key: str) -> Callable[[Config, int], list[Any] | None]:
    """Return a function that reads a list with one entry per layer."""

    def values(config: Config, count: int) -> list[Any] | None:
        entries = config.get(key)
        return list(entries) if isinstance(entries, list) and len(entries) == count else None

    return values


def _reads(key: str) -> Callable[[Config, int], list[Any] | None]:
    """Return a function that gives, for each layer, its positions in a list of layers whose outputs are used."""

    def values(config: Config, count: int) -> list[Any] | None:
        listed = config.get(key)
        listed = [listed] if type(listed) is int else listed
        if not isinstance(listed, list) or not all(type(number) is int for number in listed):
            return None
        return [[place for place, number in enumerate(listed) if number == layer] for layer in range(count)]

    return values


def _rewrite_reads(key: str) -> Callable[[Config, list[Any]], dict[str, Any] | None]:
    """Return a function that rewrites such a list if each listed layer occurs exactly once in the output."""

    def rewrite(config: Config, wanted: list[Sequence[int]]) -> dict[str, Any] | None:
        listed = config[key] if isinstance(config[key], list) else [config[key]]
        numbers = list(listed)
        for place, number in enumerate(listed):
            there = [layer for layer, places in enumerate(wanted) if place in places]
            if number >= 0 and len(there) != 1:
                return None
            numbers[place] = there[0] if number >= 0 else number
        return {key: numbers if isinstance(config[key], list) else numbers[0]}

    return rewrite
