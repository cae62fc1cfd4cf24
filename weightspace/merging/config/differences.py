"""Find configurations that define different functions for tensors of equal shapes, such as another rope_theta.

A merge keeps the configuration of one model, but the other models' weights were trained with their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import read_json_object

#: Keys that do not change the function of the weights: provenance, storage, training and generation. Models may differ
#: in whether they tie the head to the embedding.
_HARMLESS = (
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "*_version", "auto_map"),
    *("torch_dtype", "dtype", "use_cache", "*attn_implementation*", "use_flash_attn", "return_dict", "output_*"),
    *("*dropout*", "*_pdrop", "*_drop", "*layerdrop*", "drop_path_rate", "initializer_*", "init_*", "*_init_std"),
    *("gradient_checkpointing*", "problem_type", "finetuning_task", "router_aux_loss_coef", "pretraining_tp"),
    *("tie_word_embeddings", "unsloth_*", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p"),
    *("num_beams", "*_penalty", "no_repeat_ngram_size", "early_stopping", "task_specific_params"),
)

#: Parts of a configuration that don't describe the merged network: quantised weights are dequantised on reading.
_APART = frozenset({"task_specific_params", "quantization_config", "compression_config", "quantization"})

#: Keys that count layers or have one entry per layer; slices rewrite them.
_LAYERS = ("*layers*", "n_layer", "layer_types", "*layer_idx*", "*_block_types", "attention_types", "depths")

#: Keys with vocabulary sizes or token ids; they are rewritten if rows are reordered by token.
_TOKENS = ("*vocab_size*", "n_vocab", "*_token_id", "*_token_ids", "*_token_index")

#: Maximum number of fields in a message, of characters per value, and of characters before the first difference.
_LISTED, _WIDTH, _BEFORE = 6, 60, 20

#: Maximum nesting depth of objects that are compared.
_DEPTH = 6


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the ``config.json`` of a folder, or None if it has none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / "config.json"
    return read_json_object(path) if path.exists() else None


def config_differences(
    label: str,
    config: Mapping[str, Any],
    others: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    sliced: bool,
    moved: bool = False,
) -> list[str]:
    """Return a message for each model whose configuration defines another function than the output's.

    Args:
        label: label of the model whose configuration the output uses.
        config: that model's configuration.
        others: label and configuration of each other model.
        sliced: whether layers are stacked from slices, so that their numbers may differ.
        moved: whether rows are reordered by token, so that vocabulary sizes and token ids may differ.
    """
    written = (*(_LAYERS if sliced else ()), *(_TOKENS if moved else ()))
    own = _fields(config)
    lines = []
    for other_label, other in others:
        theirs = _fields(other)
        keys = [key for key in own | theirs if own.get(key) != theirs.get(key) and _matters(key, written)]
        if keys:
            listed = "; ".join(
                f"{key} {one} (not {two})" for key in keys[:_LISTED] for one, two in [_values(theirs, own, key)]
            )
            more = f"; and {len(keys) - _LISTED:,} more" if len(keys) > _LISTED else ""
            lines.append(
                f"The configuration of {other_label} differs from that of {label}, which the output uses: "
                f"{listed}{more}."
            )
    return lines


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return path -> value for all fields that are set; null, false and empty values count as unset."""
    fields: dict[str, Any] = {}
    for key, value in _plain_rope(config).items():
        if isinstance(value, Mapping) and prefix.count(".") < _DEPTH:
            fields |= _fields(value, f"{prefix}{key}.")
        elif value is not None and value is not False and value not in ([], {}):
            fields[f"{prefix}{key}"] = value
    return fields


def _plain_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with ``rope_parameters`` converted to the keys of transformers before version 5."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return _without_default_rope(config)
    local: dict[str, Any] = {}
    if any(isinstance(value, Mapping) for value in parameters.values()):
        parameters, sliding = parameters.get("full_attention"), parameters.get("sliding_attention")
        if not isinstance(parameters, Mapping) or not isinstance(sliding, Mapping) or not _is_default(sliding):
            return config
        local = {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    theta = {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}
    return _without_default_rope({"rope_scaling": scaling, **theta, **local, **rest})


def _without_default_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration without a ``rope_scaling`` of the default type, and with a single key for its type."""
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, Mapping):
        return config
    rest = {key: value for key, value in config.items() if key != "rope_scaling"}
    if _is_default(scaling):
        return rest
    older = {"rope_type": scaling["type"]} if "type" in scaling else {}
    return {**rest, "rope_scaling": {**older, **{key: value for key, value in scaling.items() if key != "type"}}}


def _is_default(rope: Mapping[str, Any]) -> bool:
    return rope.get("rope_type", rope.get("type")) == "default"


def _matters(path: str, written: Sequence[str]) -> bool:
    *parents, key = path.split(".")
    patterns = (*_HARMLESS, *written)
    return _APART.isdisjoint(parents) and not any(fnmatch(key, pattern) for pattern in patterns)


def _values(fields: Mapping[str, Any], others: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Return a field of two configurations as texts, shortened to the part around the first difference."""
    texts = [json.dumps(own[key], ensure_ascii=False) if key in own else "unset" for own in (fields, others)]
    first = next((at for at, (one, two) in enumerate(zip(*texts, strict=False)) if one != two), min(map(len, texts)))
    if max(map(len, texts)) <= _WIDTH:
        return texts[0], texts[1]
    start = max(0, first - _BEFORE)
    return _window(texts[0], start), _window(texts[1], start)


def _window(text: str, start: int) -> str:
    """Return the part of a text that starts at an index, with ellipses."""
    end = start + _WIDTH
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
