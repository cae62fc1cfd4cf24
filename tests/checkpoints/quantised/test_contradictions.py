"""Quantised weights whose parts are missing or contradict their description are refused, not read as they look."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import compare, load_dequantised
from weightspace.errors import CheckpointError

FP8 = torch.float8_e4m3fn
#: The description of FP8 weights of transformers.
SETTINGS = {"quant_method": "fp8", "weight_block_size": None}


def folder(path: Path, state: dict[str, Tensor], settings: dict[str, Any] | None, **config: Any) -> Path:
    ws.save_checkpoint(state, path)
    described = {} if settings is None else {"quantization_config": settings}
    (path / "config.json").write_text(json.dumps({**described, **config}))
    return path


def matrix(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def fp8(name: str, *, scale: bool = True) -> dict[str, Tensor]:
    weight = (matrix(4, 8) * 100).to(FP8)
    return {f"{name}.weight": weight} | ({f"{name}.weight_scale": torch.tensor([0.01])} if scale else {})


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, generator=torch.Generator().manual_seed(1)).to(torch.int32)


def test_an_fp8_matrix_without_its_scale_is_refused_beside_others(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", {**fp8("l.0.q"), **fp8("l.0.k", scale=False)}, SETTINGS)
    with pytest.raises(CheckpointError, match=r"FP8 without its scale \(l\.0\.k\.weight\)"):
        load_dequantised(path)
    with pytest.raises(CheckpointError, match="FP8 without its scale"):
        ws.merge_files([path, path], tmp_path / "out")


def test_a_file_of_a_quantised_folder_has_its_description(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", fp8("l.0.k", scale=False), SETTINGS)
    with pytest.raises(CheckpointError, match="FP8 without its scale"):
        load_dequantised(path / "model.safetensors")
    blocks = {"q.weight": (matrix(200, 200) * 9).to(FP8), "q.weight_scale_inv": torch.rand(2, 2)}
    path = folder(tmp_path / "b", blocks, {"quant_method": "fp8", "weight_block_size": [100, 100]})
    whole, file = load_dequantised(path), load_dequantised(path / "model.safetensors")
    assert torch.equal(whole["q.weight"], file["q.weight"])


@pytest.mark.parametrize("name", ["weight_scale", "scale_weight"])
def test_a_scale_beside_a_plain_matrix_of_a_quantised_model_is_refused(name: str, tmp_path: Path) -> None:
    state = {**fp8("l.0.q"), "l.0.k.weight": matrix(4, 8).bfloat16(), f"l.0.k.{name}": torch.tensor(2.0)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="a scale beside a matrix that is not in FP8"):
        load_dequantised(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scale_of_one_beside_a_plain_matrix_of_comfyui_is_left_out(dtype: torch.dtype, tmp_path: Path) -> None:
    """Some converters give one to every linear layer, also to those that they leave in 16 bits."""
    plain, one = matrix(4, 8).bfloat16(), torch.tensor([1.0], dtype=dtype)
    mark = torch.zeros(2).to(FP8)
    state = {"a.weight": matrix(4, 8).to(FP8), "a.scale_weight": torch.tensor(0.5), "scaled_fp8": mark}
    ws.save_checkpoint({**state, "b.weight": plain, "b.scale_weight": one, "b.scale_input": one}, tmp_path / "a.pt")
    found = load_dequantised(tmp_path / "a.pt")
    assert found.keys() == {"a.weight", "b.weight"}
    assert torch.equal(found["b.weight"], plain)


def test_scales_of_caches_outside_quantised_modules_are_left_out(tmp_path: Path) -> None:
    scales = {f"l.0.attn.{name}": torch.tensor(0.5) for name in ("k_scale", "v_scale", "kv_cache.scale")}
    path = folder(tmp_path / "a", {**fp8("l.0.attn.q"), **scales, "l.0.norm.weight": torch.ones(8)}, SETTINGS)
    plain = {"l.0.attn.q.weight": matrix(4, 8), "l.0.norm.weight": torch.ones(8)}
    ws.save_checkpoint(plain, tmp_path / "b.safetensors")
    report = ws.merge_files([path, tmp_path / "b.safetensors"], tmp_path / "out")
    assert ws.load_checkpoint(tmp_path / "out").keys() == plain.keys()
    assert any("3 tensors beside the weights (k_scale, v_scale, scale)" in line for line in report.warnings)


def compressed(path: Path, *, columns: int = 64, groups: int = 1, **weights: Any) -> Path:
    """Write packed integers of 4 bits of compressed-tensors."""
    state = {
        "q.weight_packed": words(8, columns // 8),
        "q.weight_scale": torch.rand(8, groups),
        "q.weight_shape": torch.tensor([8, columns]),
    }
    group = {"weights": {"num_bits": 4, "symmetric": True, "strategy": "group", **weights}, "targets": ["Linear"]}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    return folder(path, state, settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bits": 3}, "compressed-tensors"),
        ({"num_bits": 8}, "compressed-tensors"),
        ({"groups": 2, "group_size": 16}, "compressed-tensors"),
        ({"symmetric": False}, "compressed-tensors"),
        ({"actorder": "group"}, "compressed-tensors"),
    ],
)
def test_integers_that_contradict_their_description_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert load_dequantised(compressed(tmp_path / "right", groups=2, group_size=32)).keys() == {"q.weight"}
    with pytest.raises(CheckpointError, match=message):
        load_dequantised(compressed(tmp_path / "a", **options))


def gptq(path: Path, *, module: str = "q", model_type: str = "llama", **settings: Any) -> Path:
    """Write a matrix of 4 bits in two groups of 16 inputs."""
    state = {
        f"{module}.qweight": words(4, 8),
        f"{module}.qzeros": torch.full((2, 1), 0x77777777, dtype=torch.int32),
        f"{module}.scales": torch.rand(2, 8).half(),
        f"{module}.g_idx": (torch.arange(32) // 16).int(),
    }
    described = {"quant_method": "gptq", "bits": 4, "group_size": 16, **settings}
    return folder(path, state, described, model_type=model_type)


@pytest.mark.parametrize("settings", [{"bits": 8}, {"group_size": 32}, {"group_size": -1}])
def test_gptq_of_other_bits_or_groups_than_described_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    assert load_dequantised(gptq(tmp_path / "right"))["q.weight"].shape == (8, 32)
    with pytest.raises(CheckpointError, match="GPTQ"):
        load_dequantised(gptq(tmp_path / "a", **settings))
    assert load_dequantised(gptq(tmp_path / "dynamic", dynamic={"q": {}}, **settings)).keys() == {"q.weight"}


@pytest.mark.parametrize(("settings", "message"), [({"group_size": 8}, "AWQ"), ({"checkpoint_format": "gemv"}, "gemv")])
def test_awq_of_other_groups_or_layouts_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {"q.qweight": words(32, 1), "q.qzeros": words(2, 1), "q.scales": torch.rand(2, 8).half()}
    described = {"quant_method": "awq", "bits": 4, "group_size": 16}
    assert load_dequantised(folder(tmp_path / "right", state, described))["q.weight"].shape == (8, 32)
    with pytest.raises(CheckpointError, match=message):
        load_dequantised(folder(tmp_path / "a", state, {**described, **settings}))


def test_transposed_matrices_of_gpt2_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'h\.0\.c_proj\.weight' is the matrix of a Conv1D layer"):
        load_dequantised(gptq(tmp_path / "a", module="h.0.c_proj", model_type="gpt2"))
    path = gptq(tmp_path / "b", module="h.0.c_proj", model_type="gpt_bigcode")  # which has linear layers of that name
    assert load_dequantised(path).keys() == {"h.0.c_proj.weight"}


def test_nvfp4_beside_a_plain_matrix_is_refused(tmp_path: Path) -> None:
    state = {
        "q.weight_packed": torch.zeros(4, 8, dtype=torch.uint8),
        "q.weight_scale": torch.ones(4, 1).to(FP8),
        "q.weight_global_scale": torch.ones(1),
        "q.weight": matrix(4, 16),
    }
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(folder(tmp_path / "a", state, {"quant_method": "compressed-tensors"}))


def test_quantised_models_are_compared_by_their_values(tmp_path: Path) -> None:
    ws.save_checkpoint(fp8("q"), tmp_path / "a.safetensors")
    half, twice = {"q.weight": (fp8("q")["q.weight"].float() / 2).to(FP8)}, torch.tensor([0.02])
    ws.save_checkpoint({**half, "q.weight_scale": twice}, tmp_path / "b.safetensors")
    ws.save_checkpoint(load_dequantised(tmp_path / "a.safetensors"), tmp_path / "c.safetensors")
    assert compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors").relative < 1e-2
    assert compare(tmp_path / "a.safetensors", tmp_path / "c.safetensors").relative == 0
