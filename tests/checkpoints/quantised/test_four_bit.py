"""MXFP4 and NVFP4 are read as the libraries that write them read them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import load_dequantised
from weightspace.checkpoints.quantised import panels
from weightspace.checkpoints.quantised.view import dequantised
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def codes(*shape: int, seed: int = 0, below: int = 256) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def fp4(code: int) -> float:
    """Return the value of a 4-bit number: a sign and one of eight magnitudes."""
    return -VALUES[code - 8] if code >= 8 else VALUES[code]


def unpacked(packed: Tensor) -> Tensor:
    """Return the numbers of each byte, the lower half first."""
    numbers = [value for byte in packed.flatten().tolist() for value in (fp4(byte % 16), fp4(byte // 16))]
    return torch.tensor(numbers).view(*packed.shape[:-1], -1)


def oss() -> dict[str, Tensor]:
    """Return the experts of gpt-oss: 3 matrices of 40 outputs and 96 inputs."""
    exponents = codes(3, 40, 3, seed=1, below=30) + 110
    return {"mlp.experts.down_proj_blocks": codes(3, 40, 3, 16), "mlp.experts.down_proj_scales": exponents}


@pytest.mark.parametrize("panel", [2**19, 64, 5000])
def test_the_experts_of_gpt_oss(panel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL", panel)
    state = oss()
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    blocks, exponents = state.values()
    expected = unpacked(blocks) * 2.0 ** (exponents.float() - 127)[..., None]
    expected = expected.flatten(2).transpose(1, 2)
    found = load_dequantised(tmp_path / "a.safetensors")
    assert found.keys() == {"mlp.experts.down_proj"}
    assert torch.equal(found["mlp.experts.down_proj"], expected)
    reader = CheckpointReader(dequantised(read_contents(tmp_path / "a.safetensors"))).stored("mlp.experts.down_proj")
    assert reader is not None
    for start, stop in [(0, 1), (39, 41), (3839, 3841), (100, 9000), (11_519, 11_520), (5, 5)]:
        assert torch.equal(reader.read(start, stop), expected.reshape(-1)[start:stop])


def test_transformers_reads_the_experts_of_gpt_oss_alike(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    state = oss()
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    expected = mxfp4.convert_moe_packed_tensors(*state.values(), dtype=torch.float32)
    assert torch.equal(load_dequantised(tmp_path / "a.safetensors")["mlp.experts.down_proj"], expected)


def test_a_merge_of_gpt_oss_equals_that_of_the_dequantised_experts(tmp_path: Path) -> None:
    ws.save_checkpoint(oss(), tmp_path / "a.safetensors")
    ws.save_checkpoint(load_dequantised(tmp_path / "a.safetensors"), tmp_path / "wide.safetensors")
    ws.save_checkpoint({"mlp.experts.down_proj": torch.randn(3, 96, 40)}, tmp_path / "b.safetensors")
    for name in ("a", "wide"):
        sources = [tmp_path / f"{name}.safetensors", tmp_path / "b.safetensors"]
        ws.merge_files(sources, tmp_path / f"out-{name}.safetensors", dtype="bfloat16")
    found, expected = (ws.load_checkpoint(tmp_path / f"out-{name}.safetensors") for name in ("a", "wide"))
    assert torch.equal(found["mlp.experts.down_proj"], expected["mlp.experts.down_proj"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_mxfp4_of_compressed_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    exponents = codes(6, 3, seed=2, below=30) + 110
    state = {"q.weight_packed": codes(6, 48), "q.weight_scale": exponents.view(dtype)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    scales = 2.0 ** (exponents.float() - 127)
    expected = unpacked(state["q.weight_packed"]) * scales.repeat_interleave(32, 1)
    assert torch.equal(load_dequantised(tmp_path / "a.safetensors")["q.weight"], expected)


NVFP4 = {"modelopt": ("weight", "weight_scale_2"), "compressed-tensors": ("weight_packed", "weight_global_scale")}


@pytest.mark.parametrize("layout", NVFP4)
def test_nvfp4(layout: str, tmp_path: Path) -> None:
    packed, whole = NVFP4[layout]
    scales = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).mul(400).to(torch.float8_e4m3fn)
    one = torch.tensor([0.0137 if layout == "modelopt" else 1900.0])
    numbers = codes(6, 32)
    state = {f"q.{packed}": numbers, "q.weight_scale": scales, f"q.{whole}": one, "q.input_scale": torch.ones(1)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    own = scales.float() * one if layout == "modelopt" else scales.float() / one
    found = load_dequantised(tmp_path / "a.safetensors")
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], unpacked(numbers) * own.repeat_interleave(16, 1))


def test_compressed_tensors_reads_nvfp4_alike(tmp_path: Path) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    numbers = codes(6, 32)
    state = {"q.weight_packed": numbers, "q.weight_scale": torch.ones(6, 4).to(torch.float8_e4m3fn)}
    ws.save_checkpoint({**state, "q.weight_global_scale": torch.ones(1)}, tmp_path / "a.safetensors")
    expected = helpers.unpack_fp4_from_uint8(numbers, 6, 64, dtype=torch.float32)
    assert torch.equal(load_dequantised(tmp_path / "a.safetensors")["q.weight"], expected)


@pytest.mark.parametrize(
    "state",
    [
        {"e_blocks": codes(3, 4, 2, 16), "e_scales": codes(3, 4, 3)},
        {"e_blocks": codes(3, 4, 2, 8), "e_scales": codes(3, 4, 2)},
        {"q.weight_packed": codes(4, 16), "q.weight_scale": codes(4, 2)},
        {"q.weight": codes(4, 16), "q.weight_scale": codes(4, 2).float(), "q.weight_scale_2": torch.ones(())},
    ],
)
def test_other_shapes_and_dtypes_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(tmp_path / "a.safetensors")
