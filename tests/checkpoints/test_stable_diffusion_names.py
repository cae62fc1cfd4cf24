"""Stable Diffusion as a pipeline saved with transformers 4 or 5, and as a single file: each merges with each."""

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

TEXT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}

#: The three ways in which one model is stored.
LAYOUTS = ("pipeline4", "pipeline5", "single")


def components(seed: int) -> dict[str, Any]:
    """Return the networks of a small Stable Diffusion 1."""
    torch.manual_seed(seed)
    channels = (4, 4, 8, 8)
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "norm_num_groups": 4,
    }
    return {
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=channels, cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4, sample_size=8
        ),
        "vae": diffusers.AutoencoderKL(**vae),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, max_position_embeddings=8)),
    }


def tensors(networks: dict[str, Any], layout: str) -> StateDict:
    """Return all tensors under the names of a layout; the text encoder's by hand."""
    state = {f"{part}.{name}": tensor for part, one in networks.items() for name, tensor in one.state_dict().items()}
    inner = {name: name.removeprefix("text_encoder.").removeprefix("text_model.") for name in state}
    prefix = {"pipeline4": "text_encoder.text_model.", "pipeline5": "text_encoder."}[layout]
    return {
        prefix + inner[name] if name.startswith("text_encoder.") else name: tensor.contiguous()
        for name, tensor in state.items()
    }


def save_pipeline(networks: dict[str, Any], layout: str, folder: Path) -> Path:
    state = tensors(networks, layout)
    for part, network in networks.items():
        network.save_pretrained(folder / part)
        (stored,) = (folder / part).glob("*.safetensors")
        own = {name.removeprefix(f"{part}."): one for name, one in state.items() if name.startswith(f"{part}.")}
        ws.save_checkpoint(own, stored)
    index = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save(networks: dict[str, Any], layout: str, path: Path) -> Path:
    """Store a model in a layout."""
    if layout != "single":
        return save_pipeline(networks, layout, path)
    pipeline = save_pipeline(networks, "pipeline4", path.with_name(f"{path.name}-pipeline"))
    out = path.with_suffix(".safetensors")
    ws.merge_files([pipeline], out, method="passthrough", reading=ReadingOptions(names="sd15=ldm"))
    return out


def load(path: Path) -> StateDict:
    if path.is_file():
        return ws.load_checkpoint(path)
    return {
        f"{part.name}.{name}": tensor
        for part in path.iterdir()
        if part.is_dir()
        for name, tensor in ws.load_checkpoint(part).items()
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """Return two models in every layout."""
    root = tmp_path_factory.mktemp("models")
    return {
        (seed, layout): save(networks, layout, root / f"{layout}-{seed}")
        for seed in (0, 1)
        for networks in [components(seed)]
        for layout in LAYOUTS
    }


def test_the_text_encoder_of_the_single_file_is_that_of_diffusers(stored: dict[tuple[int, str], Path]) -> None:
    single, pipeline = load(stored[0, "single"]), load(stored[0, "pipeline4"])
    text = {name: tensor for name, tensor in pipeline.items() if name.startswith("text_encoder.")}
    for name, tensor in text.items():  # as in `LDM_CLIP_PREFIX_TO_REMOVE` of diffusers
        assert torch.equal(single[name.replace("text_encoder.", "cond_stage_model.transformer.")], tensor)
    assert len(single) == len(pipeline)


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_every_two_layouts_merge_into_the_layout_of_the_first(
    first: str, second: str, stored: dict[tuple[int, str], Path], tmp_path: Path
) -> None:
    out = tmp_path / ("merged.safetensors" if first == "single" else "merged")
    expected = tmp_path / ("expected.safetensors" if first == "single" else "expected")
    ws.merge_files([stored[0, first], stored[1, second]], out, reading=ReadingOptions(names="sd15"))
    ws.merge_files([stored[0, first], stored[1, first]], expected)
    found, wanted = load(out), load(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize("layout", ["pipeline4", "pipeline5"])
def test_pipelines_become_single_files_and_come_back(
    layout: str, stored: dict[tuple[int, str], Path], tmp_path: Path
) -> None:
    single = tmp_path / "single.safetensors"
    ws.merge_files([stored[0, layout]], single, method="passthrough", reading=ReadingOptions(names="sd15=ldm"))
    expected = load(stored[0, "single"])
    found = load(single)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    back = tmp_path / "back.safetensors"
    names = ["sd15=diffusers"] if layout == "pipeline4" else ["sd15=diffusers", "clip-text-5=transformers5"]
    ws.merge_files([single], back, method="passthrough", reading=ReadingOptions(names=names))
    pipeline, found = load(stored[0, layout]), load(back)
    assert found.keys() == pipeline.keys()
    assert all(torch.equal(tensor, pipeline[name]) for name, tensor in found.items())


def test_without_a_map_the_error_names_it(stored: dict[tuple[int, str], Path], tmp_path: Path) -> None:
    with pytest.raises(ws.CheckpointError, match=r"The name map sd15 brings them together: --names sd15"):
        ws.merge_files([stored[0, "pipeline5"], stored[1, "single"]], tmp_path / "merged")
    with pytest.raises(ws.CheckpointError, match=r"--names clip-text-5"):
        ws.merge_files([stored[0, "pipeline5"], stored[1, "pipeline4"]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
