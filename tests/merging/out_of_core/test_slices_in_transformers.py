"""Slices of tiny random models, loaded by transformers: each layer is what its source was, and nothing is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from torch import nn

from weightspace.errors import WeightspaceError
from weightspace.merging import merge_files
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions

SMALL: dict[str, Any] = {
    **{"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
    **{"vocab_size": 16, "max_position_embeddings": 16, "num_hidden_layers": 5},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
SIDES = {
    **{"d_model": 8, "encoder_layers": 5, "decoder_layers": 5, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 16, "decoder_start_token_id": 1},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2},
}
VISION = {**SMALL, "image_size": 8, "patch_size": 4}


def build(name: str, config: str, /, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, f"{config}Config")(**options))


#: Family: how to build a model of five layers, and the stack that the recipe names.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "mistral": (build("MistralForCausalLM", "Mistral", **SMALL), None),
    "phi3": (build("Phi3ForCausalLM", "Phi3", **SMALL), None),
    "cohere2": (build("Cohere2ForCausalLM", "Cohere2", **SMALL), None),
    "gpt_oss": (build("GptOssForCausalLM", "GptOss", **SMALL, num_local_experts=2, num_experts_per_tok=1), None),
    "qwen3_moe": (
        build(
            "Qwen3MoeForCausalLM",
            "Qwen3Moe",
            **SMALL,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=4,
            decoder_sparse_step=2,
        ),
        None,
    ),
    "bart's decoder": (build("BartForConditionalGeneration", "Bart", **SIDES), "decoder"),
    "marian's encoder": (build("MarianMTModel", "Marian", **SIDES), "model.encoder.layers"),
    "mt5's encoder": (
        build(
            "MT5ForConditionalGeneration",
            "MT5",
            d_model=8,
            d_ff=12,
            d_kv=4,
            num_layers=5,
            num_decoder_layers=5,
            num_heads=2,
            vocab_size=16,
        ),
        "encoder",
    ),
    "siglip": (build("SiglipModel", "Siglip", text_config=SMALL, vision_config=VISION), None),
    "clip's vision": (
        build("CLIPModel", "CLIP", text_config=SMALL, vision_config=VISION, projection_dim=4),
        "vision_model",
    ),
    "deit": (build("DeiTModel", "DeiT", **VISION), None),
    "dinov2": (build("Dinov2Model", "Dinov2", **VISION), None),
    "modernbert": (build("ModernBertForMaskedLM", "ModernBert", **SMALL), None),
    "recurrent_gemma": (
        build("RecurrentGemmaForCausalLM", "RecurrentGemma", **SMALL, lru_width=8, attention_window_size=4),
        None,
    ),
}


@pytest.fixture
def stacked(tmp_path: Path) -> Callable[..., tuple[nn.Module, list[nn.Module]]]:
    """Save two models of a family, stack slices of them, and return what transformers loads, and the two."""

    def stack(family: str, *ranges: tuple[int, int, int], **keys: Any) -> tuple[nn.Module, list[nn.Module]]:
        models = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            models.append(FAMILIES[family][0]().eval())
            models[-1].save_pretrained(tmp_path / str(seed))
        slices = [
            {"sources": [{"model": str(tmp_path / str(index)), "layer_range": [first, end], **keys}]}
            for index, first, end in ranges
        ]
        (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
        merge_files(
            tmp_path / "r.yml",
            tmp_path / "out",
            execution=ExecutionOptions(fsync=False),
            output=OutputOptions(hashes=False),
        )
        network, report = type(models[0]).from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert not report["mismatched_keys"]
        return network, models

    return stack


def described(layer: nn.Module) -> dict[str, Any]:
    """Return everything plain that the modules of a layer keep, but their number: windows, kinds, scales."""
    return {
        f"{path}.{key}": value
        for path, module in layer.named_modules()
        for key, value in {**vars(module), "class": type(module).__name__}.items()
        if isinstance(value, int | float | str | bool | None) and not key.startswith("_") and "idx" not in key
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_is_what_it_was(family: str, stacked: Callable[..., tuple[nn.Module, list[nn.Module]]]) -> None:
    stack = FAMILIES[family][1]
    network, models = stacked(family, (0, 0, 4), (1, 1, 5), **({"stack": stack} if stack else {}))
    order = [(0, layer) for layer in range(4)] + [(1, layer) for layer in range(1, 5)]
    ((path, layers),) = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == len(order)
    ]
    for place, (index, layer) in enumerate(order):
        found, source = layers.get_submodule(str(place)), models[index].get_submodule(path).get_submodule(str(layer))
        assert described(found) == described(source), place
        for (name, tensor), expected in zip(found.named_parameters(), source.parameters(), strict=True):
            assert torch.equal(tensor, expected), (place, name)


def test_slices_that_a_period_does_not_allow_are_refused_before_anything_is_written(
    tmp_path: Path, stacked: Callable[..., tuple[nn.Module, list[nn.Module]]]
) -> None:
    FAMILIES["jamba"] = (
        build(
            "JambaForCausalLM",
            "Jamba",
            **SMALL,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=6,
            expert_layer_offset=5,
            num_experts=2,
            mamba_d_state=4,
        ),
        None,
    )
    with pytest.raises(WeightspaceError, match="attn_layer_period"):
        stacked("jamba", (0, 0, 4), (1, 1, 5))
    assert not (tmp_path / "out").exists()
