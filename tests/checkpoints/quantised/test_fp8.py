"""FP8 matrices are read as their numbers times their scales, in every layout; what would change them is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import load_dequantised, summarise
from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.quantised.scaling import float32
from weightspace.checkpoints.quantised.view import dequantised
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError, WeightspaceError

FP8 = torch.float8_e4m3fn


def fp8(*shape: int, seed: int = 0, dtype: torch.dtype = FP8) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(20).to(dtype)


def scales(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.01


def by_element(values: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the values one by one, as the definition says: number (i, j) times the scale (i // rows, j // columns)."""
    out = torch.empty(values.shape)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            out[i, j] = values[i, j].float() * scale[i // block[0], j // block[1]].float()
    return out


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_fp8_number_becomes_the_float_that_torch_makes_of_it(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    found, expected = float32(codes), codes.float()
    assert torch.equal(found.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(found[numbers].view(torch.int32), expected[numbers].view(torch.int32))


@pytest.mark.parametrize("size", [0, 1, 2**17 + 5])
def test_many_fp8_numbers_become_the_floats_that_torch_makes_of_them(size: int) -> None:
    codes = torch.randint(256, (size,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x80  # −0 instead of NaN
    numbers = codes.view(FP8)
    assert torch.equal(float32(numbers).view(torch.int32), numbers.float().view(torch.int32))


BLOCKS = {
    "tensor": ((), (70, 300)),
    "tensor, with an axis": ((1,), (70, 300)),
    "channel": ((70, 1), (1, 300)),
    "channel, without an axis": ((70,), (1, 300)),
    "block": ((1, 3), (128, 128)),
}


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "scale_weight", "qscale_weight"])
@pytest.mark.parametrize("case", BLOCKS)
def test_a_matrix_is_its_numbers_times_the_scales_of_their_blocks(case: str, name: str, tmp_path: Path) -> None:
    shape, block = BLOCKS[case]
    values, scale = fp8(70, 300), scales(*shape)
    ws.save_checkpoint({"q.weight": values, f"q.{name}": scale}, tmp_path / "a.safetensors")
    grid = scale.reshape(-(-70 // block[0]), -(-300 // block[1]))
    found = load_dequantised(tmp_path / "a.safetensors")
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], by_element(values, grid, block))


E8M0 = torch.float8_e8m0fnu


def exponents(*shape: int) -> Tensor:
    """Return codes of powers of two: some near 1, and the smallest, which is subnormal in float32."""
    codes = torch.randint(110, 140, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    codes.view(-1)[0] = 0
    return codes


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_scales_that_are_powers_of_two(name: str, described: bool, tmp_path: Path) -> None:
    values, codes = fp8(256, 300), exponents(2, 3)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
    state = {"q.weight": values, f"q.{name}": codes.view(E8M0)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    model = folder(tmp_path / "a", settings, **state) if described else tmp_path / "a.safetensors"
    assert torch.equal(load_dequantised(model)["q.weight"], by_element(values, codes.view(E8M0), (128, 128)))


def test_scales_rounded_to_powers_of_two_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    values, codes = fp8(256, 384), exponents(2, 3)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
    for scale in (codes.view(E8M0), codes.view(E8M0).float()):
        model = folder(tmp_path / "a", settings, **{"q.weight": values, "q.weight_scale_inv": scale})
        expected = integration.Fp8Dequantize(None)._dequantize_one(values, scale, torch.float32)
        assert torch.equal(load_dequantised(model)["q.weight"], expected)


MXFP8: dict[str, dict[str, Any]] = {
    "compressed-tensors": {"config_groups": {"group_0": {"weights": {"strategy": "group", "group_size": 32}}}},
    "modelopt": {"quant_algo": "MXFP8", "group_size": 32},
    "mxfp8": {"weight_block_size": [1, 32], "scale_fmt": "ue8m0"},
}


@pytest.mark.parametrize("dtype", [torch.uint8, E8M0])
@pytest.mark.parametrize("method", MXFP8)
def test_mxfp8(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors.compressors.mx_utils")
    values, codes = fp8(6, 96), exponents(6, 3)
    state = {"q.weight": values, "q.weight_scale": codes.view(dtype)}
    model = folder(tmp_path / "a", {"quant_method": method, **MXFP8[method]}, **state)
    found = load_dequantised(model)["q.weight"]
    assert torch.equal(found, values.float() * library.decompress_mx_scale(codes).float().repeat_interleave(32, 1))
    assert torch.equal(found, load_dequantised(model / "model.safetensors")["q.weight"])


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        (exponents(2, 3), {"quant_method": "fp8", "weight_block_size": [128, 128]}),  # bytes, but not MXFP8's blocks
        (exponents(6, 3), {"quant_method": "fp8", "weight_block_size": [1, 128]}),
        (exponents(6), {"quant_method": "fp8"}),
        (exponents(6, 4).view(E8M0), {"quant_method": "mxfp8"}),
    ],
)
def test_powers_of_two_that_do_not_fit_are_refused(scale: Tensor, settings: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(folder(tmp_path / "a", settings, **{"q.weight": fp8(6, 96), "q.weight_scale_inv": scale}))


def test_a_scale_that_is_no_number_is_an_error_of_the_merge(tmp_path: Path) -> None:
    codes = exponents(6, 3)
    codes[2, 1] = 255
    ws.save_checkpoint({"q.weight": fp8(6, 96), "q.weight_scale": codes.view(E8M0)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightspaceError, match=r"q\.weight.*NaN"):
        ws.merge_files([tmp_path / "a.safetensors"] * 2, tmp_path / "out.safetensors")


@pytest.mark.parametrize(("shape", "settings"), [((3, 40, 1), {}), ((3, 40), {}), ((3, 40), {"quant_method": "fp8"})])
def test_scales_of_square_experts_that_fit_rows_and_columns_are_refused(
    shape: tuple[int, ...], settings: dict[str, str], tmp_path: Path
) -> None:
    """FBGEMM's of the shape ``(experts, out, 1)`` are those of columns; its fixture has such a matrix."""
    values, scale = fp8(3, 40, 40), scales(*shape)
    model = folder(tmp_path / "a", settings, **{"e.down_proj": values, "e.down_proj_scale": scale})
    if not settings:
        (model / "config.json").unlink()
    with pytest.raises(CheckpointError, match="they may belong to rows or to columns"):
        load_dequantised(model)
    model = folder(
        tmp_path / "b", {"quant_method": "fp8"}, **{"e.down_proj": values, "e.down_proj_scale": scales(3, 40, 1)}
    )
    assert torch.equal(load_dequantised(model)["e.down_proj"], values.float() * scales(3, 40, 1))


def test_experts_have_scales_per_matrix_column_or_block(tmp_path: Path) -> None:
    values = fp8(3, 40, 260)
    for shape, expected in {
        (3,): lambda scale: scale[:, None, None],
        (3, 1, 1): lambda scale: scale,
        (3, 1, 260): lambda scale: scale,
        (3, 40, 1): lambda scale: scale,
        (3, 1, 3): lambda scale: scale.repeat_interleave(128, 2)[:, :, :260],
    }.items():
        scale = scales(*shape)
        ws.save_checkpoint({"e.down_proj": values, "e.down_proj_scale": scale}, tmp_path / "a.safetensors")
        found = load_dequantised(tmp_path / "a.safetensors")["e.down_proj"]
        assert torch.equal(found, values.float() * expected(scale))


def test_a_range_is_the_same_wherever_it_starts(tmp_path: Path) -> None:
    state = {"q.weight": fp8(300, 270), "q.weight_scale_inv": scales(3, 3)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    reader = CheckpointReader(dequantised(read_contents(fetched_path(tmp_path / "a.safetensors"))))
    stored, whole = reader.stored("q.weight"), reader["q.weight"].flatten()
    assert stored is not None
    for start, stop in [(0, 0), (5, 6), (0, 270), (269, 271), (100, 40_000), (34_559, 34_561), (70_000, 81_000)]:
        assert torch.equal(stored.read(start, stop), whole[start:stop])


def test_torch_files_are_read_too(tmp_path: Path) -> None:
    state = {"q.weight": fp8(30, 20), "q.weight_scale": scales(30, 1), "turned": torch.randn(4, 3).T}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "a.pt")
    found = load_dequantised(tmp_path / "a.pt")
    assert torch.equal(found["module.q.weight"], state["q.weight"].float() * state["q.weight_scale"])
    torch.save({"w": fp8(9, 6).T, "w.T": torch.ones(1)}, tmp_path / "b.pt")
    assert load_dequantised(tmp_path / "b.pt").keys() == {"w", "w.T"}


def test_tied_matrices_stay_tied_if_their_scales_are(tmp_path: Path) -> None:
    values, scale = fp8(4, 4), scales(4, 1)
    for other, tied in ((scale, {"b.weight": "a.weight"}), (scale + 1, {})):
        state = {"a.weight": values, "a.weight_scale": scale, "b.weight": values, "b.weight_scale": other}
        ws.save_checkpoint(state, tmp_path / "a.safetensors")
        contents = dequantised(read_contents(tmp_path / "a.safetensors"))
        assert contents.tied == tied
        assert torch.equal(load_dequantised(tmp_path / "a.safetensors")["b.weight"], values.float() * other)
    ws.save_checkpoint({"a.weight": values, "a.weight_scale": scale, "b": values}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(tmp_path / "a.safetensors")


def test_scales_of_activations_are_left_out_with_a_warning(tmp_path: Path) -> None:
    scale = torch.tensor(0.5)
    state = {"q.weight": fp8(4, 4), "q.weight_scale": scale, "q.input_scale": scale, "scaled_fp8": fp8(1)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    report = ws.merge_files([tmp_path / "a.safetensors"] * 2, tmp_path / "out.safetensors")
    assert ws.load_checkpoint(tmp_path / "out.safetensors").keys() == {"q.weight"}
    assert any("dequantised while it is read" in line for line in report.warnings)
    assert any("left out of the merge: 1 tensor beside the weights (input_scale)" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("q.pre_quant_scale", (4,)),
        ("q.weight_zero_point", (4,)),
        ("q.smooth_factor", (4,)),
        ("q.weight_scale_2", ()),
        ("q.weight_g_idx", (4,)),
        ("q.input_quantizer._pre_quant_scale", (4,)),
    ],
)
def test_what_changes_the_values_and_is_not_read_is_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {"q.weight": fp8(4, 4), "q.weight_scale": scales(4, 1), name: scales(*shape)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shape", [(3,), (2, 1), (5, 4), (1, 1, 2)])
def test_scales_that_do_not_fit_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    ws.save_checkpoint({"q.weight": fp8(4, 4), "q.weight_scale_inv": scales(*shape)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is quantised: FP8 with block scales"):
        load_dequantised(tmp_path / "a.safetensors")


def folder(path: Path, settings: object, **state: Tensor) -> Path:
    ws.save_checkpoint(state or {"q.weight": fp8(64, 96), "q.weight_scale_inv": scales(2, 3)}, path)
    (path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", "quantization_config": settings}))
    return path


def test_the_error_on_scales_that_do_not_fit_the_configuration_names_both(tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    with pytest.raises(CheckpointError) as error:
        load_dequantised(folder(tmp_path / "a", settings))
    assert "scales of shape (2, 3) in F32 for a matrix of shape (64, 96)" in str(error.value)
    assert "weight_block_size [16, 32] of the quantization_config in config.json" in str(error.value)


def test_the_size_of_blocks_comes_from_the_configuration(tmp_path: Path) -> None:
    model = folder(tmp_path / "a", {"quant_method": "fp8", "weight_block_size": [32, 32]})
    expected = by_element(fp8(64, 96), scales(2, 3), (32, 32))
    assert torch.equal(load_dequantised(model)["q.weight"], expected)


SETTINGS = {
    "another block": {"quant_method": "fp8", "weight_block_size": [64, 64]},
    "no method": {"weight_block_size": [32, 32]},
    "another method": {"quant_method": "gptq", "weight_block_size": [32, 32]},
    "FP4 experts": {"quant_method": "fp8", "weight_block_size": [32, 32], "expert_dtype": "fp4"},
    "rotated": {"quant_method": "compressed-tensors", "weight_block_size": [32, 32], "transform_config": {"a": 1}},
    "sparse": {
        **{"quant_method": "compressed-tensors", "weight_block_size": [32, 32]},
        "sparsity_config": {"format": "sparse-24-bitmask"},
    },
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_not_followed_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(folder(tmp_path / "a", SETTINGS[case]))


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    model = folder(tmp_path / "a", {"quant_method": "fp8", "weight_block_size": [32, 32]})
    code = f"""
import sys
from pathlib import Path
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.quantised.view import dequantised
assert dequantised(read_contents(Path({str(model)!r}))).quantised
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_summary_names_the_format(tmp_path: Path) -> None:
    ws.save_checkpoint({"q.weight": fp8(4, 4), "q.weight_scale_inv": scales(1, 1)}, tmp_path / "a.safetensors")
    assert summarise(tmp_path / "a.safetensors").quantised == "FP8 with block scales"
    ws.save_checkpoint({"q.weight": fp8(4, 4)}, tmp_path / "a.safetensors")
    assert summarise(tmp_path / "a.safetensors").quantised is None


def test_a_model_exported_by_modelopt_is_read() -> None:
    """Within the rounding of E4M3 of the weights that it was made of: half of 2^-3, or of the step of subnormals."""
    folder = Path(__file__).parent / "modelopt"
    original, found = ws.load_checkpoint(folder / "original.safetensors"), load_dequantised(folder / "exported")
    stored = ws.load_checkpoint(folder / "exported")
    assert found.keys() == original.keys()
    scaled = [name for name in found if f"{name}_scale" in stored]
    assert len(scaled) == 7
    for name, tensor in original.items():
        if name not in scaled:
            assert torch.equal(found[name], tensor), name
            continue
        scale = stored[f"{name}_scale"]
        assert torch.equal(found[name], stored[name].float() * scale), name
        error = (found[name] - tensor.float()).abs()
        assert bool((error <= torch.maximum(tensor.float().abs() * 2**-4, scale * 2**-10) * 1.01).all()), name
