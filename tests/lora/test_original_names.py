"""Adapters under names of the original code that have no others here: HunyuanVideo, Chroma and Wan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.merging import merge_adapters, merge_files

WIDTH, RANK = 6, 2

#: Modules of HunyuanVideo's original code -> rows, relative to the width.
HUNYUAN = {
    "double_blocks.0.img_attn_qkv": 3,
    "double_blocks.0.txt_attn_proj": 1,
    "double_blocks.0.img_mlp.fc1": 4,
    "single_blocks.0.modulation.linear": 3,
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1": 4,
}
CHROMA = {
    "double_blocks.0.img_attn.qkv": 3,
    "single_blocks.0.linear1": 7,
    "distilled_guidance_layer.layers.0.in_layer": 1,
    "distilled_guidance_layer.in_proj": 1,
}
WAN = {
    "blocks.0.self_attn.q": 1,
    "blocks.0.cross_attn.v_img": 1,
    "blocks.0.ffn.0": 4,
    "time_embedding.0": 1,
    "time_projection.1": 6,
    "head.head": 2,
}
MODELS = {"hunyuan": HUNYUAN, "chroma": CHROMA, "wan": WAN}
PREFIXES = ("transformer.", "diffusion_model.", "model.diffusion_model.", "kohya")

#: Only Wan's names are all known without a prefix.
CASES = [*((prefix, model) for prefix in PREFIXES for model in MODELS), ("", "wan")]


def dotted(seed: int, modules: dict[str, int], prefix: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, rows in modules.items():
        state[f"{prefix}{name}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator)
        state[f"{prefix}{name}.lora_B.weight"] = torch.randn(rows * WIDTH, RANK, generator=generator)
    return state


def flattened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return factors in kohya's format."""
    roles = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    found = {}
    for name, tensor in state.items():
        end = name[-len(".lora_A.weight") :]
        found[f"lora_unet_{name.removesuffix(end).replace('.', '_')}{roles[end]}"] = tensor
    return found


def saved(folder: Path, states: Iterable[dict[str, Tensor]]) -> list[Path]:
    paths = []
    for number, state in enumerate(states):
        paths.append(folder / f"{number}.safetensors")
        ws.save_checkpoint(state, paths[-1])
    return paths


def change(state: dict[str, Tensor], module: str) -> Tensor:
    a, b = ("lora_A", "lora_B") if f"{module}.lora_A.weight" in state else ("lora_down", "lora_up")
    return state[f"{module}.{b}.weight"] @ state[f"{module}.{a}.weight"]


@pytest.mark.parametrize(("prefix", "model"), CASES)
def test_files_of_one_format_are_merged_under_their_names(prefix: str, model: str, tmp_path: Path) -> None:
    modules = MODELS[model]
    states = [dotted(seed, modules, "" if prefix == "kohya" else prefix) for seed in (1, 2)]
    states = [flattened(state) for state in states] if prefix == "kohya" else states
    paths = saved(tmp_path, states)
    merge_adapters(paths, tmp_path / "out.safetensors", method="linear", weights=[1, 2])
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert {name for name in found if not name.endswith(".alpha")} == states[0].keys()
    for name in {name.rpartition(".lora_")[0] for name in states[0]}:
        torch.testing.assert_close(change(found, name), change(states[0], name) + 2 * change(states[1], name))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("model_prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(("prefix", "model"), CASES)
def test_they_are_added_to_a_model_of_these_names(
    prefix: str, model_prefix: str, model: str, suffix: str, tmp_path: Path
) -> None:
    modules = MODELS[model]
    weights = {f"{model_prefix}{name}.weight": torch.ones(rows * WIDTH, WIDTH) for name, rows in modules.items()}
    state = dotted(1, modules, "" if prefix == "kohya" else prefix)
    ws.save_checkpoint(weights, tmp_path / f"model.{suffix}")
    ws.save_checkpoint(flattened(state) if prefix == "kohya" else state, tmp_path / f"lora.{suffix}")
    source = f"{tmp_path / 'model'}.{suffix}+{tmp_path / 'lora'}.{suffix}"
    merge_files([source], tmp_path / "out.safetensors", method="passthrough")
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    for name in modules:
        expected = 1 + change(state, f"{'' if prefix == 'kohya' else prefix}{name}")
        torch.testing.assert_close(found[f"{model_prefix}{name}.weight"], expected)


def test_conversions_without_counterparts_are_refused(tmp_path: Path) -> None:
    hunyuan = dotted(1, HUNYUAN, "transformer.")
    split = {"transformer.single_transformer_blocks.0.attn.to_q": 1, "transformer.transformer_blocks.0.attn.to_q": 1}
    paths = saved(tmp_path, [hunyuan, flattened(dotted(1, HUNYUAN, "")), dotted(2, split, "")])
    out = tmp_path / "out.safetensors"
    for inputs, form in (([paths[1]], "diffusers"), (paths[:2], "diffusers"), ([paths[0], paths[2]], "diffusers")):
        with pytest.raises(CheckpointError, match="can't be converted to diffusers' names"):
            merge_adapters(inputs, out, method="linear", format=form)
    ws.save_checkpoint({f"{name}.weight": torch.ones(WIDTH, WIDTH) for name in split}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="can't be converted to diffusers' names"):
        merge_files([f"{tmp_path / 'model.safetensors'}+{paths[0]}"], out, method="passthrough")


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_merged_files_of_hunyuan_are_loaded_by_diffusers(prefix: str, tmp_path: Path) -> None:
    loaders = pytest.importorskip("diffusers.loaders")
    paths = saved(tmp_path, [dotted(seed, HUNYUAN, prefix) for seed in (1, 2)])
    merge_adapters(paths, tmp_path / "out.safetensors", method="linear", weights=[1, 2])
    files = [*paths, tmp_path / "out.safetensors"]
    theirs = [loaders.HunyuanVideoLoraLoaderMixin.lora_state_dict(str(file)) for file in files]
    assert theirs[2].keys() == theirs[0].keys()
    for name in {name.rpartition(".lora_")[0] for name in theirs[0]}:
        torch.testing.assert_close(change(theirs[2], name), change(theirs[0], name) + 2 * change(theirs[1], name))


@pytest.mark.parametrize("model", ["hunyuan", "chroma"])
def test_original_names_are_those_of_kohyas_format(model: str, tmp_path: Path) -> None:
    state = dotted(1, MODELS[model], "transformer.")
    merge_adapters(saved(tmp_path, [state]), tmp_path / "out.safetensors", method="linear", format="kohya")
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert {name for name in found if not name.endswith(".alpha")} == flattened(dotted(1, MODELS[model], "")).keys()
    for name in MODELS[model]:
        expected = change(state, f"transformer.{name}")
        torch.testing.assert_close(change(found, f"lora_unet_{name.replace('.', '_')}"), expected)


def test_other_names_without_a_prefix_are_refused(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, [dotted(1, {"blocks.0.attn.q": 1}, "")])  # Wan's text encoder
    with pytest.raises(CheckpointError, match="isn't understood"):
        merge_adapters([path], tmp_path / "out.safetensors", method="linear")


def test_files_of_wan_with_and_without_a_prefix_get_that_of_comfyui(tmp_path: Path) -> None:
    paths = saved(tmp_path, [dotted(1, dict(list(WAN.items())[:3]), ""), dotted(2, WAN, "diffusion_model.")])
    merge_adapters(paths, tmp_path / "out.safetensors", method="linear")
    assert ws.load_checkpoint(tmp_path / "out.safetensors").keys() == dotted(2, WAN, "diffusion_model.").keys()
