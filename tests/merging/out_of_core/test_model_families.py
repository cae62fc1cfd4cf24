"""Merges of Whisper, of vision-language models, and of diffusion models in single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import weightspace as ws

WHISPER: dict[str, Any] = {
    **{"vocab_size": 32, "d_model": 8, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8},
    **{"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "decoder_start_token_id": 3,
}
SMALL: dict[str, int] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def whisper() -> Any:
    return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=4, patch_size=2)
    text = transformers.LlamaConfig(**SMALL, vocab_size=32)
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=31)
    )


@pytest.mark.parametrize("build", [whisper, llava])
def test_folders_of_other_architectures_load_as_the_average_made_by_hand(build: Any, tmp_path: Path) -> None:
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(build())
        networks[-1].save_pretrained(tmp_path / str(seed))
    ws.merge_files([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    merged, info = type(networks[0]).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found, (a, b) = merged.state_dict(), (network.state_dict() for network in networks)
    for name, tensor in a.items():
        expected = ((tensor.double() + b[name].double()) / 2).to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], expected)
    if build is whisper:
        assert merged.proj_out.weight is merged.model.decoder.embed_tokens.weight


#: Names of single files: Stable Diffusion 1, Stable Diffusion XL and Flux, as ComfyUI and others save them.
SINGLE_FILES = {
    "sd15": (
        *("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "sdxl": (
        *("model.diffusion_model.label_emb.0.0.weight", "first_stage_model.decoder.conv_out.weight"),
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    ),
    "flux": ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight"),
    "flux in ComfyUI": ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "vae.encoder.conv_in.weight"),
}


@pytest.mark.parametrize("family", SINGLE_FILES)
def test_single_files_of_diffusion_models_merge_like_others(family: str, tmp_path: Path) -> None:
    buffers = {"betas": torch.linspace(0, 1, 4), "cond_stage_model.position_ids": torch.arange(4)}
    states = []
    for name in "ab":
        states.append({key: torch.randn(4, 3).half() for key in SINGLE_FILES[family]} | buffers)
        ws.save_checkpoint(states[-1], tmp_path / f"{name}.safetensors")
    ws.merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "m.safetensors")
    merged = ws.load_checkpoint(tmp_path / "m.safetensors")
    for name in SINGLE_FILES[family]:
        assert torch.equal(merged[name], ((states[0][name].double() + states[1][name].double()) / 2).half())
    assert all(torch.equal(merged[name], tensor) for name, tensor in buffers.items())


def test_the_prefix_of_comfyui_is_stripped_where_other_models_lack_it(tmp_path: Path) -> None:
    bare = {"double_blocks.0.img_attn.qkv.weight": torch.ones(4, 3), "img_in.weight": torch.ones(3)}
    ws.save_checkpoint(bare, tmp_path / "a.safetensors")
    prefixed = {f"model.diffusion_model.{name}": 3 * tensor for name, tensor in bare.items()}
    ws.save_checkpoint(prefixed, tmp_path / "b.safetensors")
    report = ws.merge_files([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "m.safetensors")
    assert any("'model.diffusion_model.'" in line for line in report.warnings)
    merged = ws.load_checkpoint(tmp_path / "m.safetensors")
    assert all(torch.equal(merged[name], 2 * tensor) for name, tensor in bare.items())
