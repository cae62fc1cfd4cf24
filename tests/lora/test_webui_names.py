"""Names of kohya's files as ComfyUI and AUTOMATIC1111 match them with original models, read and written."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.lora import read_adapter
from weightspace.lora.locate import located
from weightspace.merging import merge_adapters

KEYS = json.loads((Path(__file__).parents[1] / "data" / "webui" / "keys.json").read_text())
FAMILIES = [family for family in KEYS if family != "note"]


def kohya(path: Path, modules: list[str], rank: int) -> Path:
    state = {}
    for module in modules:
        state[f"{module}.lora_down.weight"] = torch.randn(rank, 4)
        state[f"{module}.lora_up.weight"] = torch.randn(3, rank)
        state[f"{module}.alpha"] = torch.tensor(2.0)
    ws.save_checkpoint(state, path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_each_module_is_found_in_the_original_model(family: str, tmp_path: Path) -> None:
    pairs = KEYS[family]
    adapter = read_adapter(kohya(tmp_path / "a.safetensors", list(pairs), 2))
    shapes = {name: (3, 4) for name in pairs.values()}
    found = located(adapter, shapes, {}, "model+a")
    sources = {factors.names["A"]: name for name, factors in found.factors.items()}
    assert sources == {f"{module}.lora_down.weight": name for module, name in pairs.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_has_only_names_that_are_read(family: str, tmp_path: Path) -> None:
    modules = list(KEYS[family])
    inputs = [kohya(tmp_path / f"{rank}.safetensors", modules[rank - 2 :], rank) for rank in (2, 5)]
    merge_adapters(inputs, tmp_path / "out.safetensors", method="linear", rank=4)
    state = ws.load_checkpoint(tmp_path / "out.safetensors")
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(state) == {f"{module}.{part}" for module in modules for part in parts}
    alphas = {float(state[f"{module}.alpha"]) for module in modules}
    assert alphas == {3.0}  # the rank of 3 by 4 matrices; diffusers misreads alphas that differ
    assert all(len(state[f"{module}.lora_down.weight"]) == 3 for module in modules)


def test_diffusers_names_become_kohyas(tmp_path: Path) -> None:
    names = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": "sd15",
        "unet.mid_block.resnets.1.conv2": "sd15",
        "text_encoder.text_model.encoder.layers.11.mlp.fc1": "sd15",
    }
    state = {}
    for name in names:
        state |= {f"{name}.lora_A.weight": torch.randn(2, 4), f"{name}.lora_B.weight": torch.randn(3, 2)}
    ws.save_checkpoint(state, tmp_path / "d.safetensors")
    merge_adapters([tmp_path / "d.safetensors"], tmp_path / "k.safetensors", method="linear", format="kohya")
    written = {name.partition(".")[0] for name in ws.load_checkpoint(tmp_path / "k.safetensors")}
    assert len(written) == 3
    assert written < set(KEYS["sd15"])


def test_names_of_one_unet_are_written_in_one_spelling(tmp_path: Path) -> None:
    """Diffusers' loader drops LDM's names beside its own."""
    ldm = kohya(tmp_path / "ldm.safetensors", ["lora_unet_input_blocks_4_1_proj_in", "lora_unet_out_2"], 2)
    own = kohya(tmp_path / "own.safetensors", ["lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_conv_in"], 2)
    report = merge_adapters([ldm, own], tmp_path / "out.safetensors", method="linear")
    written = {name.partition(".")[0] for name in ws.load_checkpoint(tmp_path / "out.safetensors")}
    assert written == {f"lora_unet_{name}" for name in ("down_blocks_1_attentions_0_proj_in", "conv_out", "conv_in")}
    assert sorted(report.ranks.values()) == [2, 2, 4]
