"""Per-layer entries of configurations: reordered with the layers, or refused."""

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from weightspace.merging.config.layer_rules import layer_rules
from weightspace.merging.slices.layer_values import values_of

#: Six layers of 0 to 5: 0 to 3, then 2 to 5.
STACKED = [0, 1, 2, 3, 2, 3, 4, 5]


def rewritten(config: dict[str, Any], order: list[int], count: int = 6) -> dict[str, Any] | None:
    """Return a configuration of layers in another order, by the rules one after the other; None if one refuses."""
    result = dict(config)
    for rule in layer_rules(config, count):
        values = values_of(rule, config, count)
        if values is None:
            continue
        wanted = [values[layer] for layer in order]
        if values_of(rule, config, len(order)) != wanted:
            changes = rule.rewrite(config, wanted)
            if changes is None:
                return None
            result |= changes
    return result


F, S, L = "full_attention", "sliding_attention", "linear_attention"
TYPES = [S, S, F, S, S, F]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"layer_types": TYPES}, {"layer_types": [S, S, F, S, F, S, S, F]}),
        ({"no_rope_layers": [1, 1, 1, 0, 1, 1]}, {"no_rope_layers": [1, 1, 1, 0, 1, 0, 1, 1]}),
        ({"mlp_layer_types": list("dsssss")}, {"mlp_layer_types": list("dsssssss")}),
        ({"layers_block_type": list("mmammm")}, {"layers_block_type": list("mmamammm")}),
        ({"attention_window": [8, 8, 16, 32, 64, 64]}, {"attention_window": [8, 8, 16, 32, 16, 32, 64, 64]}),
        ({"num_key_value_heads": [1, 2, 3, 4, 5, 6]}, {"num_key_value_heads": [1, 2, 3, 4, 3, 4, 5, 6]}),
        ({"block_configs": [{"n": i} for i in range(6)]}, {"block_configs": [{"n": i} for i in STACKED]}),
        ({"hybrid_override_pattern": "M-M*-E"}, {"hybrid_override_pattern": "M-M*M*-E"}),
        ({"block_types": ["r", "r", "a"]}, {"block_types": list("rrararra")}),
        ({"attention_types": [[["g", "l"], 3]]}, {"attention_types": [[list("glglglgl"), 1]]}),
        ({"mlp_only_layers": [0, 3]}, {"mlp_only_layers": [0, 3, 5]}),
        ({"cross_attention_layers": [1, 4]}, {"cross_attention_layers": [1, 6]}),
        ({"attn_layer_indices": [2]}, {"attn_layer_indices": [2, 4]}),
        ({"hybrid_layer_ids": [5]}, {"hybrid_layer_ids": [7]}),
        ({"full_attn_idxs": [0, 2]}, {"full_attn_idxs": [0, 2, 4]}),
        ({"first_k_dense_replace": 1}, {"first_k_dense_replace": 1}),
        ({"num_dense_layers": 2}, {"num_dense_layers": 2}),
        (
            {"decoder_sparse_step": 2, "num_experts": 4},
            {"decoder_sparse_step": 2, "num_experts": 4},
        ),
        (
            {"decoder_sparse_step": 3, "mlp_only_layers": []},
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 3, 5, 6]},
        ),
        ({"moe_layer_interval": 2, "moe_layer_start_index": 1}, {"moe_layer_interval": 2, "moe_layer_start_index": 1}),
        ({"interleave_moe_layer_step": 3}, {"interleave_moe_layer_step": 3, "moe_layers": [2, 4, 7]}),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, {"attn_layer_period": 2, "attn_layer_offset": 1}),
        ({"num_kv_shared_layers": 2}, {"num_kv_shared_layers": 2}),
        (
            {"per_layer_config": {"2": {"head_dim": 4}}},
            {"per_layer_config": {"2": {"head_dim": 4}, "4": {"head_dim": 4}}},
        ),
        (
            {"linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3, 5, 6]}},
            {"linear_attn_config": {"full_attn_layers": [4, 6], "kda_layers": [1, 2, 3, 5, 7, 8]}},
        ),
        (
            {
                "stage_names": ["stem", *(f"stage{i}" for i in range(1, 7))],
                "out_indices": [6],
                "out_features": ["stage6"],
            },
            {
                "stage_names": ["stem", *(f"stage{i}" for i in range(1, 9))],
                "out_indices": [8],
                "out_features": ["stage8"],
            },
        ),
        ({"deepstack_visual_indexes": [1, 5]}, {"deepstack_visual_indexes": [1, 7]}),
        ({"vision_feature_layer": -2}, {"vision_feature_layer": -2}),
        ({"model_type": "gemma2"}, {"model_type": "gemma2"}),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, {"layer_types": [S, S, F, S, F, S, S, F]}),
        ({"model_type": "cohere2"}, {"layer_types": [S, S, S, F, S, F, S, S]}),
        ({"model_type": "qwen3_next"}, {"layer_types": [L, L, L, F, L, F, L, L]}),
        ({"model_type": "modernbert"}, {"layer_types": [F, S, S, F, S, F, S, S]}),
        ({"model_type": "smollm3"}, {"no_rope_layers": [1, 1, 1, 0, 1, 0, 1, 1]}),
        ({"model_type": "llama4_text"}, {"no_rope_layers": [1, 1, 1, 0, 1, 0, 1, 1]}),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 5}, {"layer_types": [F] * 7 + [S]}),
        ({"model_type": "mistral", "sliding_window": 8}, {"model_type": "mistral", "sliding_window": 8}),
        ({"moe_layer_freq": 2}, {"moe_layer_freq": 2}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_configuration_follows_its_layers(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """Lists are cut, numbers renumbered, thresholds kept where they hold, and periods written out where they break."""
    result = rewritten(config, STACKED)
    assert result is not None
    assert {key: result.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "config",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"model_type": "diffllama"},
        {"model_type": "zamba2"},
        {"model_type": "minimax"},
        {"hidden_size_per_layer_input": 8},
        {"first_k_dense_replace": 3},
        {"num_kv_shared_layers": 3},
        {"attn_layer_period": 3, "attn_layer_offset": 2},
        {"num_sparse_encoder_layers": 2},
        {"global_attn_every_n_layers": 3},
        {"cross_layer_interval": 4},
        {"dense_attention_every_n_layers": 3},
        {"deepstack_visual_indexes": [2, 5]},
        {"kv_source_layers": [0, 0, 0, 3, 3, 3]},
        {"odd_numbers": [1, 2, 3, 4, 5, 6]},
        {"model_type": "gemma4_text", "layer_types": [F, F, F, F, F, S]},
        {"model_type": "unheard_of", "sliding_window": 8},
        {"moe_layers": [2, 6]},
    ],
    ids=str,
)
def test_a_rule_of_the_layers_number_that_slices_break_is_refused(config: dict[str, Any]) -> None:
    assert rewritten(config, STACKED) is None


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token_id": [1, 2, 3, 4, 5, 6]},
        {"architectures": ["A", "B", "C", "D", "E", "F"]},
        {"image_grid_pinpoints": [[1, 2]] * 6},
        {"conv_dim": [8] * 6, "conv_kernel": [1, 2, 3, 4, 5, 6]},
        {"mrope_section": [1, 2, 3, 4, 5, 6]},
        {"mtp_layer_types": [1, 2, 3, 4, 5, 6]},
        {"layer_norm_eps": 1, "num_attention_heads": 6, "layerdrop": 0.1},
        {"rope_scaling": {"short_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_fields_that_are_not_about_layers_stay(config: dict[str, Any]) -> None:
    assert rewritten(config, STACKED) == config


@pytest.mark.parametrize("order", [list(range(6)), list(range(3))])
@pytest.mark.parametrize(
    "config",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"model_type": "diffllama"},
        {"cross_layer_interval": 2},
    ],
)
def test_layers_that_keep_their_numbers_keep_every_rule(config: dict[str, Any], order: list[int]) -> None:
    assert rewritten(config, order) == config


#: Model types with more than one kind of attention; releases of transformers know more and more of them.
MIXED = (
    *("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "vaultgemma", "cohere2", "olmo3", "exaone4", "afmoe"),
    *("gpt_oss", "qwen3_next", "qwen3_5_text", "minimax", "modernbert", "modernbert-decoder", "cwm", "granite_swa"),
    *("qwen2", "qwen3"),
)


@pytest.mark.parametrize("layers", [5, 8, 13])
@pytest.mark.parametrize("model_type", [name for name in MIXED if name in CONFIG_MAPPING])
def test_implied_layer_types_are_those_of_transformers(model_type: str, layers: int) -> None:
    config = CONFIG_MAPPING[model_type](num_hidden_layers=layers)
    told = {key: value for key, value in config.to_dict().items() if key != "layer_types"}
    (rule,) = [rule for rule in layer_rules(told, layers) if rule.key == "layer_types"]
    assert rule.values(told, layers) == config.layer_types


@pytest.mark.parametrize("layers", [4, 9])
@pytest.mark.parametrize("model_type", ["smollm3", "llama4_text"])
def test_implied_rotary_layers_are_those_of_transformers(model_type: str, layers: int) -> None:
    config = CONFIG_MAPPING[model_type](num_hidden_layers=layers)
    told = {key: value for key, value in config.to_dict().items() if key not in ("no_rope_layers", "layer_types")}
    (rule,) = [rule for rule in layer_rules(told, layers) if rule.key == "no_rope_layers"]
    assert rule.values(told, layers) == config.no_rope_layers
