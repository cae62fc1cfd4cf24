"""Adapters of Flux: fused matrices of kohya and split ones of diffusers, there and back, and on either model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.lora.formats.flux import diffusers_parts, original_part
from weightspace.merging import merge_adapters, merge_files

WIDTH, RANK = 4, 2

#: Modules of kohya's files: rows and columns, relative to the width.
KOHYA = {
    "double_blocks_0_img_attn_qkv": (3, 1),
    "double_blocks_0_txt_attn_qkv": (3, 1),
    "double_blocks_0_img_attn_proj": (1, 1),
    "double_blocks_0_txt_attn_proj": (1, 1),
    "double_blocks_0_img_mlp_0": (4, 1),
    "double_blocks_0_txt_mlp_2": (1, 4),
    "double_blocks_0_img_mod_lin": (6, 1),
    "single_blocks_0_linear1": (7, 1),
    "single_blocks_0_linear2": (1, 5),
    "single_blocks_0_modulation_lin": (3, 1),
    "txt_in": (1, 2),
    "time_in_in_layer": (1, 1),
}


def kohya(seed: int, width: int = WIDTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (rows, columns) in KOHYA.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(RANK, columns * width, generator=generator)
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows * width, RANK, generator=generator)
        state[f"lora_unet_{name}.alpha"] = torch.tensor(1.0 + seed)
    return state


def saved(path: Path, state: Mapping[str, Tensor]) -> Path:
    ws.save_checkpoint(dict(state), path)
    return path


def converted(path: Path, form: str, out: Path) -> dict[str, Tensor]:
    merge_adapters([path], out, method="linear", weights=[1], format=form)
    return ws.load_checkpoint(out)


def change(state: Mapping[str, Tensor], module: str) -> Tensor:
    """Return the change of a module in kohya's or diffusers' format."""
    if f"{module}.lora_A.weight" in state:
        return state[f"{module}.lora_B.weight"] @ state[f"{module}.lora_A.weight"]
    down = state[f"{module}.lora_down.weight"]
    return state[f"{module}.lora_up.weight"] @ down * (state[f"{module}.alpha"] / len(down))


def test_kohyas_files_are_split_as_by_diffusers(tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    state = kohya(1, width=3072)  # a width that diffusers presumes
    expected = utils._convert_kohya_flux_lora_to_diffusers(dict(state))
    expected = {name.removeprefix("transformer."): tensor for name, tensor in expected.items()}
    found = converted(saved(tmp_path / "k.safetensors", state), "diffusers", tmp_path / "d.safetensors")
    assert all(name.startswith("transformer.") for name in found)
    found = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    assert found.keys() == expected.keys()
    for name in found:
        module, _, rest = name.partition(".lora_A")
        if rest:
            probe = torch.randn(found[name].shape[1], 2, generator=torch.Generator().manual_seed(0))
            both = [one[f"{module}.lora_B.weight"] @ (one[name] @ probe) for one in (found, expected)]
            torch.testing.assert_close(*both)


def test_kohyas_names_come_back_with_the_same_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "k.safetensors", kohya(1))
    plain = converted(path, "kohya", tmp_path / "plain.safetensors")  # with all scales 1
    converted(path, "diffusers", tmp_path / "d.safetensors")
    back = converted(tmp_path / "d.safetensors", "kohya", tmp_path / "back.safetensors")
    assert back.keys() == plain.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in plain.items())


def test_files_of_both_kinds_merge(tmp_path: Path) -> None:
    first, second = kohya(0), kohya(1)
    paths = [saved(tmp_path / "0.safetensors", first), saved(tmp_path / "1.safetensors", second)]
    converted(paths[1], "diffusers", tmp_path / "d.safetensors")
    for form in ("kohya", "diffusers"):
        mixed, out = [paths[0], tmp_path / "d.safetensors"], tmp_path / f"{form}.safetensors"
        merge_adapters(mixed, out, method="linear", weights=[1, 2], format=form)
        found = converted(out, "kohya", tmp_path / "whole.safetensors")
        for name in KOHYA:
            expected = change(first, f"lora_unet_{name}") + 2 * change(second, f"lora_unet_{name}")
            torch.testing.assert_close(change(found, f"lora_unet_{name}"), expected)


def models() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return one model under the original names and under those of diffusers."""
    original, split = {}, {}
    for number, (flat, (rows, columns)) in enumerate(KOHYA.items()):
        parts = diffusers_parts(flat)
        assert parts is not None
        weight = torch.full((rows * WIDTH, columns * WIDTH), float(number))
        part = original_part(parts.names[0].replace(".", "_"))
        assert part is not None
        original[f"{part.name}.weight"] = weight
        pieces = weight.split([size * len(weight) // sum(parts.sizes) for size in parts.sizes])
        split |= {f"{name}.weight": piece.clone() for name, piece in zip(parts.names, pieces, strict=True)}
    return original, split


def test_either_kind_is_added_to_either_model(tmp_path: Path) -> None:
    original, split = models()
    saved(tmp_path / "original.safetensors", original)
    saved(tmp_path / "split.safetensors", split)
    adapters = {"kohya": saved(tmp_path / "k.safetensors", kohya(1)), "diffusers": tmp_path / "d.safetensors"}
    converted(adapters["kohya"], "diffusers", adapters["diffusers"])
    for adapter in adapters.values():
        out = {}
        for model in ("original", "split"):
            source = f"{tmp_path / model}.safetensors+{adapter}"
            merge_files([source], tmp_path / f"{model}-out.safetensors", method="passthrough")
            out[model] = ws.load_checkpoint(tmp_path / f"{model}-out.safetensors")
        for flat in KOHYA:
            parts = diffusers_parts(flat)
            assert parts is not None
            part = original_part(parts.names[0].replace(".", "_"))
            assert part is not None
            whole = out["original"][f"{part.name}.weight"]
            expected = original[f"{part.name}.weight"] + change(kohya(1), f"lora_unet_{flat}")
            torch.testing.assert_close(whole, expected)
            torch.testing.assert_close(torch.cat([out["split"][f"{name}.weight"] for name in parts.names]), expected)


def test_a_folder_of_peft_merges_with_a_file_of_its_names(write: Callable[..., Path], tmp_path: Path) -> None:
    name = "double_blocks.0.img_attn.qkv"
    a, b = torch.randn(RANK, WIDTH), torch.randn(3 * WIDTH, RANK)
    folder = write("peft", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, lora_alpha=RANK)
    path = saved(tmp_path / "k.safetensors", kohya(1))
    merge_adapters([folder, path], tmp_path / "out.safetensors", method="linear", weights=[1, 2], format="kohya")
    module = f"lora_unet_{name.replace('.', '_')}"
    expected = b @ a + 2 * change(kohya(1), module)
    torch.testing.assert_close(change(ws.load_checkpoint(tmp_path / "out.safetensors"), module), expected)


REFUSED = {
    "the last norm": "final_layer_adaLN_modulation_1",
    "Flux 2": "single_blocks_1_linear1",
    "another module": "double_blocks_0_img_attn_norm",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused(case: str, tmp_path: Path) -> None:
    name = f"lora_unet_{REFUSED[case]}"
    state = {
        **kohya(0),
        f"{name}.lora_down.weight": torch.ones(1, WIDTH),
        f"{name}.lora_up.weight": torch.ones(9 * WIDTH, 1),
    }
    path = saved(tmp_path / "k.safetensors", state)
    with pytest.raises(CheckpointError, match=f"{name}.*can't be converted to diffusers' names"):
        converted(path, "diffusers", tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_stable_diffusion_3_keeps_its_names(tmp_path: Path) -> None:
    # Its blocks have the names of Flux's double blocks, but there are no single ones.
    state = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(1, WIDTH),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(WIDTH, 1),
    }
    found = converted(saved(tmp_path / "d.safetensors", state), "kohya", tmp_path / "k.safetensors")
    assert "lora_unet_transformer_blocks_0_attn_to_q.alpha" in found
