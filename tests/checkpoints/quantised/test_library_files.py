"""Matrices that the formats' own libraries quantised have the values that these libraries read in them, bit for bit.

The committed files, and the scripts that made them, are in tests/data/quantised (see the README there). Libraries that
run on a CPU and are among the development dependencies quantise in the test itself.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import load_dequantised
from weightspace.checkpoints.quantised import panels
from weightspace.errors import CheckpointError

DATA = Path(__file__).parents[2] / "data" / "quantised"
EXPECTED = sorted((DATA / "expected").iterdir())


@pytest.mark.parametrize("panel", [2**19, 600])
@pytest.mark.parametrize("name", [path.stem for path in EXPECTED])
def test_files_of_the_libraries_are_read_as_they_read_them(
    name: str, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "PANEL", panel)
    native = DATA / name / "consolidated.safetensors"  # Mistral's folders have another name for the weights
    found = load_dequantised(native if native.is_file() else DATA / name)
    expected = ws.load_checkpoint(DATA / "expected" / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_folder_in_mistrals_own_format_leads_to_its_file() -> None:
    with pytest.raises(CheckpointError, match=r"It holds consolidated\.safetensors: name the file itself"):
        load_dequantised(DATA / "mistral")


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8"])
def test_comfyuis_blocks_are_refused_even_if_they_look_like_modelopts(form: str) -> None:
    """Names and shapes are those of ModelOpt's formats; the order of the scales differs."""
    with pytest.raises(CheckpointError, match=f"quantised: format '{form}' of ComfyUI \\('q'\\)"):
        load_dequantised(DATA / "refused" / f"comfyui-{form}.safetensors")


MARKS: dict[str, tuple[object, str]] = {
    "another format": ({"format": "int8_tensorwise"}, "format 'int8_tensorwise' of ComfyUI"),
    "rotated": ({"format": "float8_e4m3fn", "convrot": True}, "'float8_e4m3fn' of ComfyUI with 'convrot'"),
    "no format": ({}, "a format whose description cannot be read"),
    "a list": ([1], "a format whose description cannot be read"),
}


@pytest.mark.parametrize("place", ["tensor", "header"])
@pytest.mark.parametrize("case", MARKS)
def test_other_descriptions_of_comfyui_are_refused(case: str, place: str, tmp_path: Path) -> None:
    mark, message = MARKS[case]
    state = {"q.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "q.weight_scale": torch.tensor(0.5)}
    text, metadata = json.dumps(mark), {}
    if place == "tensor":
        state["q.comfy_quant"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    else:
        metadata["_quantization_metadata"] = json.dumps({"layers": {"q": mark}})
    ws.save_checkpoint(state, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        load_dequantised(tmp_path / "a.safetensors")


@pytest.mark.parametrize("mark", ["file", "tensor", "header"])
def test_fp8_without_a_scale_is_a_plain_number_in_comfyuis_files(mark: str, tmp_path: Path) -> None:
    """ComfyUI loads a layer that has no description by a cast; in other libraries' files, a scale is missing."""
    values, scale = torch.randn(4, 4).to(torch.float8_e4m3fn), torch.tensor(0.5)
    described = {"format": "float8_e4m3fn", "params": {}}
    state = {"q.weight": values, "q.weight_scale": scale, "embed.weight": values.clone()}
    marks = {"file": {"scaled_fp8": torch.zeros(0)}, "header": {}}
    marks["tensor"] = {"q.comfy_quant": torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)}
    header = {"_quantization_metadata": json.dumps({"layers": {"q": described}})} if mark == "header" else {}
    ws.save_checkpoint({**state, **marks[mark]}, tmp_path / "a.safetensors", metadata=header)
    found = load_dequantised(tmp_path / "a.safetensors")
    assert torch.equal(found["q.weight"], values.float() / 2)
    assert torch.equal(found["embed.weight"].float(), values.float())
    ws.save_checkpoint(state, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="FP8 without its scale"):
        load_dequantised(tmp_path / "b.safetensors")


def test_a_merge_of_comfyuis_fp8_leaves_its_marks_out(tmp_path: Path) -> None:
    sources = [DATA / "comfyui", DATA / "comfyui-header"]
    ws.merge_files(sources, tmp_path / "out.safetensors", dtype="float32")
    found, expected = (
        ws.load_checkpoint(path) for path in (tmp_path / "out.safetensors", EXPECTED[0].parent / "comfyui.safetensors")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


#: Preset of compressed-tensors -> its compressor, and the axes over which a scale is computed, of the matrix in blocks.
PRESETS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "FP8": ("FloatQuantizationCompressor", (128, 256), (1,)),
    "FP8_BLOCK": ("FloatQuantizationCompressor", (1, 128, 2, 128), (1, 3)),
    "MXFP8": ("MXFP8QuantizationCompressor", (128, 8, 32), (2,)),
    "MXFP4": ("MXFP4PackedCompressor", (128, 8, 32), (2,)),
    "NVFP4": ("NVFP4PackedCompressor", (128, 16, 16), (2,)),
}


def compressed(preset: str, path: Path) -> Tensor:
    """Write a matrix that compressed-tensors quantises and packs, and return the values that it reads in it.

    It dequantises its blocks in bfloat16, which is exact for powers of two; for NVFP4, the same functions are called in
    float32.
    """
    compressors: Any = pytest.importorskip("compressed_tensors.compressors")
    library: Any = pytest.importorskip("compressed_tensors.quantization")
    utils: Any = pytest.importorskip("compressed_tensors.quantization.utils")
    scheme, (kind, blocks, axes) = library.preset_name_to_scheme(preset, ["Linear"]), PRESETS[preset]
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    keep = len(axes) == 1 and len(blocks) == 2  # a scale per channel is a column
    low, high = weight.view(blocks).amin(axes, keepdim=keep), weight.view(blocks).amax(axes, keepdim=keep)
    parts = {"weight": weight}
    if preset == "NVFP4":
        parts["weight_global_scale"] = utils.generate_gparam(weight.amin(), weight.amax())
    whole = parts.get("weight_global_scale")
    parts["weight_scale"] = utils.calculate_qparams(low, high, scheme.weights, global_scale=whole)[0]
    packed = getattr(compressors, kind).compress(dict(parts), scheme)
    ws.save_checkpoint({f"q.{name}": tensor.contiguous() for name, tensor in packed.items()}, path)
    groups = {"group_0": {"targets": ["Linear"], "weights": json.loads(scheme.weights.model_dump_json())}}
    settings = {"quant_method": "compressed-tensors", "config_groups": groups}
    (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    if whole is None:
        return getattr(compressors, kind).decompress(dict(packed), scheme)["weight"].float()
    helpers: Any = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    forward: Any = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    numbers = helpers.unpack_fp4_from_uint8(packed["weight_packed"], 128, 256, dtype=torch.float32)
    scales = packed["weight_scale"].float()
    return forward.dequantize(numbers, scales, args=scheme.weights, global_scale=whole, dtype=torch.float32)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_compressed_tensors_quantises(preset: str, tmp_path: Path) -> None:
    expected = compressed(preset, tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "model.safetensors"):
        found = load_dequantised(path)
        assert found.keys() == {"q.weight"}
        assert torch.equal(found["q.weight"], expected)


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("shape", [(128, 256), (3, 128, 256)])
def test_what_transformers_quantises_to_fp8_by_blocks(shape: tuple[int, ...], scale_fmt: str, tmp_path: Path) -> None:
    library: Any = pytest.importorskip("transformers.integrations.finegrained_fp8")
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.FineGrainedFP8Config(weight_block_size=(64, 128), scale_fmt=scale_fmt)
    quantiser = SimpleNamespace(quantization_config=config)
    name = "q.weight" if len(shape) == 2 else "mlp.experts.down_proj"
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = library.Fp8Quantize(quantiser).convert({name: weight})
    numbers, scales = state[name], next(tensor for key, tensor in state.items() if key != name)
    ws.save_checkpoint(state, tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"quantization_config": config.to_dict()}))
    found = load_dequantised(tmp_path / "a")
    assert found.keys() == {name}
    assert torch.equal(found[name], library.Fp8Dequantize(quantiser)._dequantize_one(numbers, scales, torch.float32))
    assert bool((found[name] - weight).norm() < 0.05 * weight.norm())


def test_what_bitsandbytes_quantises_to_eight_bits(tmp_path: Path) -> None:
    """The library's layer quantises on a GPU only, so its function for CPUs is called; names are those of the layer."""
    library: Any = pytest.importorskip("bitsandbytes.functional")
    numbers, scales, _ = library.int8_vectorwise_quant(
        torch.randn(12, 20, generator=torch.Generator().manual_seed(0)).half()
    )
    state = {"q.weight": numbers, "q.SCB": scales.float(), "q.weight_format": torch.tensor(0, dtype=torch.uint8)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    found = load_dequantised(tmp_path / "a.safetensors")
    assert torch.equal(found["q.weight"], library.int8_vectorwise_dequant(numbers, scales.float()))
