"""Configuration of the output: the donor's, made consistent with the tensors.

Its dtypes become those of the tensors, tower by tower; an untied head is declared as such; and for stacked slices the
number of layers and all per-layer settings are rewritten.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import json_document
from weightspace.errors import WeightspaceError
from weightspace.lora.tied_weights import untied as with_own_head
from weightspace.merging.config.quantisation import remove_quantisation
from weightspace.merging.config.sections import (
    KeyPath,
    count_keys,
    maybe_counts,
    part_of,
    read_configuration,
    section_of,
    sections,
)
from weightspace.merging.config.towers import named_tower, tower
from weightspace.merging.plan.plan import Job
from weightspace.merging.slices.layer_values import LayerValues, values_of
from weightspace.merging.slices.sliced_model import SlicedModel
from weightspace.merging.slices.stacking import Stacking

#: Name of a dtype in safetensors -> in configurations.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: Further files with a number of layers: open_clip's, and that of Mistral's native format.
_COUNTING = ("open_clip_config.json", "params.json")


def adapted_configurations(
    donor: Path, jobs: Sequence[Job], *, untied: bool, stackings: Sequence[Stacking]
) -> dict[str, str]:
    """Return the configuration files that change in the output.

    Args:
        donor: the folder that the configuration comes from.
        jobs: the tensors of the output.
        untied: whether the output has a separate head where some model tied it to the embedding.
        stackings: the stacked slices, one per module.

    Returns:
        New text by file name.

    Raises:
        CheckpointError: a configuration is damaged.
        WeightspaceError: it cannot describe the layers in their new order.
    """
    changed: dict[str, str] = {}
    config = read_configuration(donor)
    if config is not None:
        before = copy.deepcopy(config)
        _set_dtypes(config, jobs)
        remove_quantisation(config)
        if untied:
            config = with_own_head(config)
        for stacking in stackings:
            _stack(config, stacking)
        if config != before:
            changed["config.json"] = json_document(config)
    moved = [stacking for stacking in stackings if stacking.moves]
    for name in _COUNTING if moved else ():
        other = read_configuration(donor, name)
        if other is not None:
            for stacking in moved:
                _count_elsewhere(other, stacking, name)
            changed[name] = json_document(other)
    heads = [text for stacking in moved if (text := _alignment_heads(donor, stacking)) is not None]
    return {**changed, "generation_config.json": heads[0]} if heads else changed


def _set_dtypes(config: dict[str, Any], jobs: Sequence[Job]) -> None:
    """Set the dtypes of a configuration and its sections to those of the largest tensors that they describe."""
    inexact = sorted(
        (job for job in jobs if job.info.is_inexact and job.scales is None), key=lambda job: -job.info.nbytes
    )
    largest = {}
    for job in inexact:
        largest.setdefault(tower(job.name), job.info.dtype)
    for path, part in list(sections(config)):
        own = named_tower(path)
        dtype = largest.get(own) if own is not None else None
        dtype = dtype or (inexact[0].info.dtype if inexact else None)
        for key in ("torch_dtype", "dtype"):
            if part.get(key) is not None and dtype in _DTYPES:
                _change(config, path, {key: _DTYPES[dtype]})


def _stack(config: dict[str, Any], stacking: Stacking) -> None:
    """Update a configuration to describe the stacked layers."""
    model = stacking.models[stacking.donor]
    _check_read_layers(config, stacking)
    values = LayerValues(stacking)
    changes: dict[str, Any] = {}
    counted = _counts(model, len(stacking.layers)) if stacking.moves else {}
    part = {**model.part, **counted}
    for rule in values.rules:
        wanted = values.wanted(rule)
        if wanted is None or values_of(rule, part, len(wanted)) == wanted:
            continue
        told = rule.rewrite(part, wanted)
        if told is not None:
            changes |= told
        elif not rule.optional:
            raise _inexpressible(rule.key, model.part.get(rule.key), stacking)
    _change(config, model.section, {**counted, **changes})
    _change_twin(config, model.section, {**counted, **changes})
    if model.section and named_tower(model.section) == "text":  # older releases write the count twice
        old = {key: value for key, value in model.part.items() if key in counted}
        _change(config, (), {key: counted[key] for key in counted if config.get(key) == old.get(key) and key in config})


def _change_twin(config: dict[str, Any], path: KeyPath, changes: dict[str, Any]) -> None:
    """Change the duplicate in older CLIP configurations: ``text_config_dict`` overrides ``text_config`` on loading."""
    if path:
        twin = part_of(config, path[:-1]).get(f"{path[-1]}_dict")
        if isinstance(twin, dict):
            twin.update({key: value for key, value in changes.items() if key in twin})


def _check_read_layers(config: dict[str, Any], stacking: Stacking) -> None:
    """Refuse to move layers of a vision tower that a language model selects by index."""
    content = config.get("vision_feature_layer")
    numbers = content if isinstance(content, list) else [content]
    by_number = any(type(number) is int and number >= 0 for number in numbers)
    if by_number and stacking.moves and tower(stacking.stack) == "vision":
        raise _inexpressible("vision_feature_layer", content, stacking)


def _counts(model: SlicedModel, total: int) -> dict[str, int]:
    """Return the keys that hold the number of layers of a stack, with the new number."""
    part, side = model.part, model.side
    keys = count_keys(part, side, model.count, model.stack)
    counted = dict.fromkeys(keys, total)
    if not keys and side == "decoder":
        counted["decoder_layers" if "encoder_layers" in part else "num_decoder_layers"] = total
    elif side == "encoder" and not count_keys(part, "decoder"):
        # Without a number for the decoder, T5's has as many layers as the encoder.
        other = [count for stack, count in model.layers.stacks.items() if "decoder" in stack and "encoder" not in stack]
        counted |= {"num_decoder_layers": max(other)} if other and "num_layers" in keys else {}
    elif not keys and "model_type" in part and not maybe_counts(part, model.count):
        counted["num_hidden_layers"] = total
    elif not keys and isinstance(architecture := part.get("architecture"), str):
        return _timm(model, architecture, total)
    if not counted and total != model.count:
        raise WeightspaceError(
            f"The configuration of {model.member.label} has no known key for the number of layers of {model.stack!r} "
            f"(found {model.count} layers; expected num_hidden_layers or similar), so it cannot be set to {total}. "
            "Write to OUT.safetensors to get only the tensors."
        )
    return counted


def _timm(model: SlicedModel, architecture: str, total: int) -> Any:
    """Return timm's argument for the depth of a vision transformer."""
    if total == model.count:
        return {}
    if not architecture.startswith(("vit_", "deit", "eva", "beit", "flexivit")):
        raise WeightspaceError(
            f"{model.member.label} is timm's {architecture[:60]!r}, whose number of layers cannot be set. Write to "
            "OUT.safetensors to get only the tensors."
        )
    return {"model_args": {**(model.part.get("model_args") or {}), "depth": total}}


def _count_elsewhere(config: dict[str, Any], stacking: Stacking, name: str) -> None:
    """Set the number of layers in another configuration file."""
    model = stacking.models[stacking.donor]
    path = section_of(config, model.stack)
    keys = count_keys(part_of(config, path), model.side, model.count, model.stack)
    if not keys and len(stacking.layers) != model.count:
        raise WeightspaceError(
            f"{name} of {model.member.label} has no known key for the number of layers of {model.stack!r}, so it "
            f"cannot be set to {len(stacking.layers)}. Write to OUT.safetensors to get only the tensors."
        )
    _change(config, path, dict.fromkeys(keys, len(stacking.layers)))


def _alignment_heads(donor: Path, stacking: Stacking) -> str | None:
    """Return Whisper's generation settings with its alignment heads, pairs of layer and head, renumbered."""
    model = stacking.models[stacking.donor]
    if model.side != "decoder" or not stacking.moves:
        return None
    config = read_configuration(donor, "generation_config.json")
    if config is None:
        return None
    pairs = config.get("alignment_heads")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    layers = [sources[0][1] for sources in stacking.layers]
    places = {layer: [place for place, own in enumerate(layers) if own == layer] for layer in layers}
    config["alignment_heads"] = [[place, head] for layer, head in pairs for place in places.get(layer, [])]
    return json_document(config)


def _inexpressible(key: str, content: object, stacking: Stacking) -> WeightspaceError:
    """Return the error for a per-layer rule that slices break."""
    model = stacking.models[stacking.donor]
    value = repr(content)
    place, (source, layer) = next(
        ((place, own) for place, sources in enumerate(stacking.layers) for own in sources if own[1] != place),
        (len(stacking.layers), (stacking.donor, model.count)),
    )
    return WeightspaceError(
        f"The configuration of {model.member.label} distinguishes the layers of {model.stack!r} by their numbers "
        f"({key}: {value[:40]}{'…' if len(value) > 40 else ''}) and cannot describe these slices: position {place} "
        f"gets layer {layer} of {stacking.models[source].member.label}. Expected slices that keep the rule, or "
        "an OUT.safetensors, which has no configuration."
    )


def _change(config: dict[str, Any], path: KeyPath, changes: dict[str, Any]) -> None:
    """Change keys of a section of a configuration."""
    for key in path:
        config = config[key]
    config.update(changes)
