"""Built-in name maps against the libraries whose names they translate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.name_maps.apply import mapped
from weightspace.checkpoints.name_maps.named_maps import read_name_maps
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.merging import ReadingOptions

SMALL: dict[str, Any] = {"cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4, "sample_size": 8}
TEXT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def read_as(path: Path, name: str) -> StateDict:
    """Return a checkpoint as read through a built-in map, ``MAP=SIDE``."""
    (name_map,) = read_name_maps(name)
    assert name_map.to is not None
    return CheckpointReader(mapped(read_contents(path), name_map, name_map.to).contents).state()


def check_equal(found: StateDict, expected: StateDict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def saved(state: StateDict, path: Path, prefix: str = "") -> Path:
    ws.save_checkpoint({prefix + name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def unet(family: str) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    if family == "sd15":
        return UNet2DConditionModel(block_out_channels=(4, 4, 8, 8), **SMALL)
    return UNet2DConditionModel(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16,
        use_linear_projection=True,
        **SMALL,
    )


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_unets_are_converted_as_by_diffusers(family: str, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network = unet(family)
    state = network.state_dict()
    whole = read_as(saved(state, tmp_path / "unet.safetensors", "unet."), f"{family}=ldm")
    check_equal(convert_ldm_unet_checkpoint(dict(whole), dict(network.config)), state)
    check_equal(
        read_as(saved(whole, tmp_path / "ldm.safetensors"), f"{family}=diffusers"),
        {f"unet.{name}": tensor for name, tensor in state.items()},
    )
    alone = read_as(saved(state, tmp_path / "alone.safetensors"), f"{family}-unet=ldm")
    check_equal({f"model.diffusion_model.{name}": tensor for name, tensor in alone.items()}, whole)


def test_vaes_are_converted_as_by_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4, 8, 8, 8),
    }
    network = AutoencoderKL(**blocks, layers_per_block=2, norm_num_groups=4)
    whole = read_as(saved(network.state_dict(), tmp_path / "vae.safetensors", "vae."), "sdxl=ldm")
    check_equal(convert_ldm_vae_checkpoint(dict(whole), dict(network.config)), network.state_dict())
    alone = read_as(saved(network.state_dict(), tmp_path / "alone.safetensors"), "sd-vae=ldm")
    check_equal({f"first_stage_model.{name}": tensor for name, tensor in alone.items()}, whole)


def test_the_open_clip_text_encoder_is_converted_as_by_diffusers(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    network = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, projection_dim=8, max_position_embeddings=8))
    path = saved(network.state_dict(), tmp_path / "text.safetensors", "text_encoder_2.")
    whole = read_as(path, "sdxl=ldm")
    assert "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight" in whole
    found = convert_open_clip_checkpoint(network, dict(whole), prefix="conditioner.embedders.1.model.")
    check_equal(found, network.state_dict())


def test_a_pipeline_merges_with_a_single_file(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    state = unet("sd15").state_dict()
    whole = read_as(saved(state, tmp_path / "unet.safetensors", "unet."), "sd15=ldm")
    whole |= {"betas": torch.ones(4), "model_ema.decay": torch.ones(1)}
    unet("sd15").save_pretrained(tmp_path / "pipeline/unet")
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    saved(whole, tmp_path / "single.safetensors")
    reading = ReadingOptions(names="sd15")
    report = ws.merge_files([tmp_path / "pipeline", tmp_path / "single.safetensors"], tmp_path / "m", reading=reading)
    assert any("2 left out, such as betas" in line for line in report.warnings)
    check_equal(UNet2DConditionModel.from_pretrained(tmp_path / "m/unet").state_dict(), state)


@pytest.mark.parametrize(("family", "name"), [("Mixtral", "experts-mixtral"), ("Qwen2Moe", "experts")])
def test_experts_are_fused_as_by_transformers(family: str, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    sizes = {**TEXT, "num_key_value_heads": 1, "moe_intermediate_size": 8, "num_experts": 3, "num_local_experts": 3}
    config = getattr(transformers, f"{family}Config")(**sizes, shared_expert_intermediate_size=8)
    network = getattr(transformers, f"{family}ForCausalLM")(config)
    network.save_pretrained(tmp_path / "model")
    stored = ws.load_checkpoint(tmp_path / "model")
    assert any(".experts.0." in key for key in stored)
    fused = read_as(tmp_path / "model", f"{name}=fused")
    check_equal(fused, network.state_dict())
    check_equal(read_as(saved(fused, tmp_path / "fused.safetensors"), f"{name}=split"), stored)


def test_gpt_oss_experts_are_split_as_the_network_reads_them(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    sizes = {**TEXT, "num_key_value_heads": 1, "head_dim": 4, "num_local_experts": 3}
    state = GptOssForCausalLM(GptOssConfig(**sizes, layer_types=["full_attention"])).state_dict()
    fused = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    split = read_as(saved(fused, tmp_path / "model.safetensors"), "experts-gpt-oss=split")
    experts = "model.layers.0.mlp.experts"
    gate_up, bias = fused[f"{experts}.gate_up_proj"], fused[f"{experts}.gate_up_proj_bias"]
    for number in range(3):
        assert torch.equal(split[f"{experts}.{number}.gate_proj.weight"], gate_up[number, :, ::2].T)
        assert torch.equal(split[f"{experts}.{number}.up_proj.weight"], gate_up[number, :, 1::2].T)
        assert torch.equal(split[f"{experts}.{number}.up_proj.bias"], bias[number, 1::2])


def test_llava_is_renamed_as_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    vision = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(**TEXT))
    network = transformers.LlavaForConditionalGeneration(config)
    new = saved(network.state_dict(), tmp_path / "new.safetensors")
    old = read_as(new, "llava-5=transformers4")
    assert "language_model.model.layers.0.mlp.up_proj.weight" in old
    ws.save_checkpoint(old, tmp_path / "old")
    config.save_pretrained(tmp_path / "old")
    check_equal(
        transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "old").state_dict(), network.state_dict()
    )


def test_queries_keys_and_values_of_phi_3_are_split_by_heads(tmp_path: Path) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 1}
    fused = torch.randn(12, 8)
    ws.save_checkpoint({"model.layers.0.self_attn.qkv_proj.weight": fused}, tmp_path / "phi")
    (tmp_path / "phi/config.json").write_text(json.dumps(config))
    split = read_as(tmp_path / "phi", "qkv=split")
    parts = fused.split([8, 2, 2])
    for name, part in zip("qkv", parts, strict=True):
        assert torch.equal(split[f"model.layers.0.self_attn.{name}_proj.weight"], part)
