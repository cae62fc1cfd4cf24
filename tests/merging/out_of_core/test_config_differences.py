"""Fields in which configurations differ are named with both values; other spellings of one function are not."""

from typing import Any

import pytest

from weightspace.merging.config.differences import config_differences

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
TYPES = ["sliding_attention"] * 6 + ["full_attention"] * 2

#: Case -> two configurations, and what the line says.
DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a key of the scaling of rope": (
        {"rope_scaling": LLAMA3},
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 4096}},
        "rope_scaling.original_max_position_embeddings 4096 (not 8192).",
    ),
    "a decoder of its own": (
        {"decoder": {"model_type": "bert", "layer_norm_eps": 1e-5}},
        {"decoder": {"model_type": "bert", "layer_norm_eps": 1e-12}},
        "decoder.layer_norm_eps 1e-12 (not 1e-05).",
    ),
    "a late entry of a list": (
        {"layer_types": TYPES},
        {"layer_types": [*TYPES[:6], "sliding_attention", "full_attention"]},
        'layer_types …liding_attention", "sliding_attention", "full_attention"] (not …liding_attention", '
        '"full_attention", "full_attention"]).',
    ),
    "the rope of one kind of layers": (
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 5e4}}},
        "rope_local_base_freq unset (not 10000.0)",
    ),
}

ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the scaling of rope before and after transformers 5": (
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ),
    "the rope of two kinds of layers before and after it": (
        {"text_config": {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"type": "linear"}}},
        {
            "text_config": {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "linear"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            }
        },
    ),
    "the older key of its type": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ),
    "settings of generation": ({"num_beams": 4, "task_specific_params": {"summary": {"prefix": "x"}}}, {}),
    "a tie and a dropout of a decoder": (
        {"decoder": {"tie_word_embeddings": True, "attention_dropout": 0.1}},
        {"decoder": {"tie_word_embeddings": False}},
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_field_and_both_values_are_named(case: str) -> None:
    config, other, message = DIFFERENT[case]
    (line,) = config_differences("a", config, [("b", other)], sliced=False)
    assert message in line
    assert len(line) < 500


@pytest.mark.parametrize("case", ALIKE)
def test_other_spellings_are_not_warned_about(case: str) -> None:
    config, other = ALIKE[case]
    assert config_differences("a", config, [("b", other)], sliced=False) == []
    assert config_differences("a", other, [("b", config)], sliced=False) == []


def test_objects_that_are_nested_deep_are_compared_as_text() -> None:
    def nested(depth: int, value: int) -> Any:
        return {"a": nested(depth - 1, value)} if depth else value

    (line,) = config_differences("a", nested(60, 1), [("b", nested(60, 2))], sliced=False)
    assert "2" in line
    assert len(line) < 500
