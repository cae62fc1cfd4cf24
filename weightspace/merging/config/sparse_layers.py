"""Rules for which layers are mixtures of experts, have attention in hybrid models, or share keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from weightspace.merging.config.layer_lists import LayerRule
from weightspace.merging.config.sections import Config, Side

#: Keys with the number of dense layers before the first mixture-of-experts layer.
_DENSE = ("first_k_dense_replace", "num_dense_layers")

#: Maximum number of sparse layers to try.
_MOST = 100


def sparse_rules(section: Config, side: Side | None) -> Iterator[LayerRule]:
    """Yield the rules of a configuration section that are not lists.

    Args:
        section: the section.
        side: whether the stack is the encoder or decoder of an encoder-decoder model.
    """
    above = isinstance(section.get("mlp_layer_types"), list)
    for key in _DENSE:
        if type(section.get(key)) is int:
            yield replace(_dense_first(key), optional=above)
    if "encoder_sparse_step" not in section and type(section.get("decoder_sparse_step")) is int:
        yield LayerRule("decoder_sparse_step", _stepped, _rewrite_stepped)
    for kind in ("attn_layer", "expert_layer"):
        if type(section.get(f"{kind}_period")) is int and not isinstance(section.get("layers_block_type"), list):
            yield _periodic(f"{kind}_period", f"{kind}_offset")
    if type(section.get("moe_layer_interval")) is int:
        yield LayerRule("moe_layer_interval", _interval, _rewrite_interval)
    if type(section.get("interleave_moe_layer_step")) is int and not isinstance(section.get("moe_layers"), list):
        yield LayerRule("moe_layers", _interleaved, _rewrite_interleaved)
    for own in ("encoder", "decoder"):
        if side in (None, own) and type(section.get(f"num_sparse_{own}_layers")) is int:
            yield _switch(f"num_sparse_{own}_layers")
    if section.get("num_kv_shared_layers"):
        yield LayerRule("num_kv_shared_layers", _sharing, _rewrite_sharing)


def _dense_first(key: str) -> LayerRule:
    """Return the rule of a key that counts leading dense layers."""

    def values(config: Config, count: int) -> list[bool] | None:
        dense, step = config.get(key), config.get("moe_layer_freq", 1)
        if type(dense) is not int or type(step) is not int or step < 1:
            return None
        return [layer >= dense and layer % step == 0 for layer in range(count)]

    def rewrite(config: Config, wanted: list[bool]) -> dict[str, Any] | None:
        dense = wanted.index(True) if True in wanted else len(wanted)
        return _checked(config, {key: dense}, values, wanted)

    return LayerRule(key, values, rewrite)


def _stepped(config: Config, count: int) -> list[bool] | None:
    """Return whether each layer is sparse, by the rule of Qwen2-MoE."""
    step, dense = config.get("decoder_sparse_step"), config.get("mlp_only_layers") or []
    if type(step) is not int or step < 1:
        return None
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(count)]


def _rewrite_stepped(config: Config, wanted: list[bool]) -> dict[str, Any] | None:
    dense = [layer for layer, sparse in enumerate(wanted) if not sparse]
    plain = _checked(config, {"mlp_only_layers": []}, _stepped, wanted)
    return plain or {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def _periodic(period: str, offset: str) -> LayerRule:
    """Return the rule of a period with an offset, as in Jamba."""

    def values(config: Config, count: int) -> list[bool] | None:
        length, start = config.get(period), config.get(offset, 0)
        return [layer % length == start for layer in range(count)] if type(length) is int and length > 0 else None

    def rewrite(config: Config, wanted: list[bool]) -> dict[str, Any] | None:
        own = [layer for layer, kind in enumerate(wanted) if kind]
        start = own[0] if own else len(wanted)
        length = own[1] - own[0] if len(own) > 1 else len(wanted) + 1
        choices = [{period: config[period], offset: start % config[period]}, {period: length, offset: start}]
        return next((choice for choice in choices if values({**config, **choice}, len(wanted)) == wanted), None)

    return LayerRule(period, values, rewrite)


def _interval(config: Config, count: int) -> list[bool] | None:
    """Return whether each layer is sparse, by the rule of ERNIE 4.5."""
    step, start = config["moe_layer_interval"], config.get("moe_layer_start_index") or 0
    end = config.get("moe_layer_end_index", -1)
    end = count if end == -1 else end
    return [(layer + 1) % step == 0 and start <= layer <= end for layer in range(count)]


def _rewrite_interval(config: Config, wanted: list[bool]) -> dict[str, Any] | None:
    sparse = [layer for layer, own in enumerate(wanted) if own]
    ends = {"moe_layer_start_index": min(sparse, default=len(wanted)), "moe_layer_end_index": max(sparse, default=0)}
    return _checked(config, ends, _interval, wanted) or _checked(
        config, {**ends, "moe_layer_interval": 1}, _interval, wanted
    )


def _interleaved(config: Config, count: int) -> list[bool] | None:
    """Return whether each layer is sparse, by the rule of Llama 4."""
    step, listed = config.get("interleave_moe_layer_step"), config.get("moe_layers")
    if isinstance(listed, list):
        return [layer in listed for layer in range(count)]
    return [(layer + 1) % step == 0 for layer in range(count)] if type(step) is int and step > 0 else None


def _rewrite_interleaved(_: Config, wanted: list[bool]) -> dict[str, Any] | None:
    return {"moe_layers": [layer for layer, sparse in enumerate(wanted) if sparse]}


def _switch(key: str) -> LayerRule:
    """Return the rule of Switch Transformers, whose sparse layers are evenly spaced."""

    def values(config: Config, count: int) -> list[bool] | None:
        sparse = config.get(key)
        if type(sparse) is not int:
            return None
        step = max(count // sparse, 1) if sparse > 0 else count + 1
        return [sparse > 0 and (layer % step == 1 or step == 1) for layer in range(count)]

    def rewrite(config: Config, wanted: list[bool]) -> dict[str, Any] | None:
        counts = ({key: sparse} for sparse in range(min(len(wanted), _MOST) + 1))
        return next((choice for choice in counts if values({**config, **choice}, len(wanted)) == wanted), None)

    return LayerRule(key, values, rewrite)


def _sharing(config: Config, count: int) -> list[bool] | None:
    """Return whether each layer reuses the keys and values of an earlier layer, as in Gemma 3n."""
    shared = config.get("num_kv_shared_layers")
    return [layer >= count - shared for layer in range(count)] if type(shared) is int else None


def _rewrite_sharing(config: Config, wanted: list[bool]) -> dict[str, Any] | None:
    return _checked(config, {"num_kv_shared_layers": sum(wanted)}, _sharing, wanted)


def _checked(
    config: Config, changes: dict[str, Any], values: Callable[[Config, int], list[bool] | None], wanted: list[bool]
) -> dict[str, Any] | None:
    """Return changes to a configuration if they give the wanted values, else None."""
    return changes if values({**config, **changes}, len(wanted)) == wanted else None
