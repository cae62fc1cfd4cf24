"""Stable Diffusion XL as diffusers and transformers themselves save its pipeline, and as a single file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.merging import ReadingOptions

diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")
single_files: Any = pytest.importorskip("diffusers.loaders.single_file_utils")

CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
}


def components(seed: int) -> dict[str, Any]:
    """Return the networks of a small Stable Diffusion XL."""
    torch.manual_seed(seed)
    unet = {
        "block_out_channels": (4, 8, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 2),
        "addition_embed_type": "text_time",
        **{"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 16, "use_linear_projection": True},
        **{"cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4, "sample_size": 8},
    }
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        **{"block_out_channels": (4, 8, 8, 8), "layers_per_block": 2, "norm_num_groups": 4},
    }
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(**text, vocab_size=32, projection_dim=8, max_position_embeddings=8)
    return {
        "unet": diffusers.UNet2DConditionModel(**unet),
        "vae": diffusers.AutoencoderKL(**vae),
        "text_encoder": transformers.CLIPTextModel(config),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(config),
    }


def save(networks: dict[str, Any], folder: Path) -> Path:
    """Write a pipeline as the libraries save its networks."""
    for part, network in networks.items():
        network.save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps(CLASSES))
    return folder


def converted(source: Path, out: Path, *names: str) -> Path:
    reading = ReadingOptions(names=list(names))
    ws.merge_files([source], out, method="passthrough", reading=reading)
    return out


def same(found: StateDict, expected: StateDict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], own) for name, own in expected.items())


def test_the_single_file_is_read_by_diffusers_as_the_networks(tmp_path: Path) -> None:
    networks = components(0)
    single = converted(save(networks, tmp_path / "a"), tmp_path / "single.safetensors", "sdxl=ldm")
    state = ws.load_checkpoint(single)
    own = {name: network.state_dict() for name, network in networks.items()}
    assert same(single_files.convert_ldm_unet_checkpoint(dict(state), dict(networks["unet"].config)), own["unet"])
    assert same(single_files.convert_ldm_vae_checkpoint(dict(state), dict(networks["vae"].config)), own["vae"])
    second, prefix = networks["text_encoder_2"], "conditioner.embedders.1.model."
    assert same(single_files.convert_open_clip_checkpoint(second, dict(state), prefix=prefix), own["text_encoder_2"])
    prefix = "conditioner.embedders.0.transformer.text_model."  # fixed: files have the names of transformers 4
    first = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    assert same(first, {name.removeprefix("text_model."): tensor for name, tensor in own["text_encoder"].items()})


def test_a_single_file_merges_into_a_pipeline_that_the_libraries_load(tmp_path: Path) -> None:
    pipelines = [save(components(seed), tmp_path / str(seed)) for seed in (0, 1)]
    single = converted(pipelines[1], tmp_path / "single.safetensors", "sdxl=ldm")
    ws.merge_files([pipelines[0], single], tmp_path / "merged", reading=ReadingOptions(names="sdxl"))
    ws.merge_files(pipelines, tmp_path / "expected")
    for part, (library, kind) in CLASSES.items():
        load = getattr(diffusers if library == "diffusers" else transformers, kind).from_pretrained
        assert same(load(tmp_path / "merged" / part).state_dict(), load(tmp_path / "expected" / part).state_dict())


def test_a_single_file_comes_back_as_transformers_5_saves_it(tmp_path: Path) -> None:
    pipeline = save(components(0), tmp_path / "a")
    single = converted(pipeline, tmp_path / "single.safetensors", "sdxl=ldm")
    stored = ws.load_checkpoint(pipeline)
    is_new = "text_encoder.embeddings.token_embedding.weight" in stored
    names = ["sdxl=diffusers", *(["clip-text-5=transformers5"] if is_new else [])]
    assert same(ws.load_checkpoint(converted(single, tmp_path / "back.safetensors", *names)), stored)
