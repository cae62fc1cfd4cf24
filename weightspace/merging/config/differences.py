"""Configurations that say different functions for equal shapes: another rope_theta, another activation.

A merge takes the configuration of one model; the weights of the others were trained under theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import read_json_object

#: Keys that do not change what the weights compute: where they come from, how they are stored, trained and generated
#: with. A head that only some models tie to their embedding is merged as what it is.
_HARMLESS = (
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "*_version", "auto_map"),
    *("torch_dtype", "dtype", "use_cache", "*attn_implementation*", "use_flash_attn", "return_dict", "output_*"),
    *("*dropout*", "*_pdrop", "*_drop", "*layerdrop*", "drop_path_rate", "initializer_*", "init_*", "*_init_std"),
    *("gradient_checkpointing*", "problem_type", "finetuning_task", "router_aux_loss_coef", "pretraining_tp"),
    *("tie_word_embeddings", "unsloth_*", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p"),
    *("num_beams", "*_penalty", "no_repeat_ngram_size", "early_stopping", "task_specific_params"),
)

#: Keys that count layers, or have an entry for each: slices write them anew.
_LAYERS = ("*layers*", "n_layer", "layer_types", "*layer_idx*", "*_block_types", "attention_types", "depths")

#: Keys that count tokens or name their ids: where rows are moved by token, they are written anew.
_TOKENS = ("*vocab_size*", "n_vocab", "*_token_id", "*_token_ids", "*_token_index")

#: Fields that a line names, characters of a value, and of those how many before a difference.
_LISTED, _WIDTH, _BEFORE = 6, 60, 20

#: How deep objects are looked into.
_DEPTH = 6


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the ``config.json`` of a folder, None where there is none.

    Raises:
        CheckpointError: it is damaged.
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
    """Return a line for each model whose configuration says another function than the output's.

    Args:
        label: how lines call the model whose configuration the output gets.
        config: of that model.
        others: label and configuration of each other model.
        sliced: layers are put together anew, so that their number may differ.
        moved: rows are moved by token, so that numbers and ids of tokens may differ.
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
                f"{other_label} was made for another configuration than {label}, whose the output gets: {listed}{more}."
            )
    return lines


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields that are set by their paths; what is null or false counts as not set."""
    fields: dict[str, Any] = {}
    for key, value in _plain_rope(config).items():
        if isinstance(value, Mapping) and prefix.count(".") < _DEPTH:
            fields |= _fields(value, f"{prefix}{key}.")
        elif value is not None and value is not False and value not in ([], {}):
            fields[f"{prefix}{key}"] = value
    return fields


def _plain_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with ``rope_parameters`` as transformers before 5 wrote them."""
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
    """Return a configuration without a ``rope_scaling`` that scales nothing, and with one key for its type."""
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
    return "task_specific_params" not in parents and not any(fnmatch(key, pattern) for pattern in patterns)


def _values(fields: Mapping[str, Any], others: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Return a field of two configurations as texts, of long ones the part in which they differ first."""
    texts = [json.dumps(own[key], ensure_ascii=False) if key in own else "unset" for own in (fields, others)]
    first = next((at for at, (one, two) in enumerate(zip(*texts, strict=False)) if one != two), min(map(len, texts)))
    if max(map(len, texts)) <= _WIDTH:
        return texts[0], texts[1]
    start = max(0, first - _BEFORE)
    return _window(texts[0], start), _window(texts[1], start)


def _window(text: str, start: int) -> str:
    """Return a part of a text that begins at a character."""
    end = start + _WIDTH
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
