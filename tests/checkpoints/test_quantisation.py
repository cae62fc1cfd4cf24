"""Quantised weights are recognised by their companions, and plain ones are left in peace."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints.quantisation import find_quantised, find_quantised_folder
from weightspace.errors import CheckpointError

FP8, E5M2 = "F8_E4M3", "F8_E5M2"

#: Format -> tensors of one layer, as its files hold them: name -> dtype and number of axes.
QUANTISED = {
    "FP8 with block scales": {"q.weight": (FP8, 2), "q.weight_scale_inv": ("F32", 2)},
    "FP8 with scales": {"q.weight": (FP8, 2), "q.weight_scale": ("F32", 0), "q.input_scale": ("F32", 0)},
    "FP8 with scales, e5m2": {"q.weight": (E5M2, 2), "q.scale_weight": ("F32", 0)},
    "FP8 with scales, of the inputs alone": {"q.weight": (FP8, 2), "q.input_scale": ("F32", 0)},
    "FP8 with scales (ComfyUI)": {"scaled_fp8": (FP8, 1), "q.weight": (FP8, 2)},
    "FP8 with scales, experts": {"experts.gate_up_proj": (FP8, 3), "experts.gate_up_proj_scale": ("F32", 3)},
    "MXFP4": {"experts.down_proj_blocks": ("U8", 4), "experts.down_proj_scales": ("U8", 3)},
    "GPTQ": {"q.qweight": ("I32", 2), "q.qzeros": ("I32", 2), "q.scales": ("F16", 2), "q.g_idx": ("I32", 1)},
    "AWQ": {"q.qweight": ("I32", 2), "q.qzeros": ("I32", 2), "q.scales": ("F16", 2)},
    "bitsandbytes 4-bit": {
        **{"q.weight": ("U8", 2), "q.weight.absmax": ("U8", 1), "q.weight.quant_map": ("F32", 1)},
        **{"q.weight.quant_state.bitsandbytes__nf4": ("U8", 1)},
    },
    "bitsandbytes 8-bit": {"q.weight": ("I8", 2), "q.SCB": ("F32", 1)},
    "NVFP4": {"q.weight": ("U8", 2), "q.weight_scale": (FP8, 2), "q.weight_scale_2": ("F32", 0)},
    "compressed-tensors": {"q.weight_packed": ("I32", 2), "q.weight_scale": ("F16", 2), "q.weight_shape": ("I64", 1)},
    "HQQ": {"q.W_q": ("U8", 2), "q.scale": ("F16", 2), "q.zero": ("F16", 2)},
    "EXL2": {"q.q_weight": ("I32", 2), "q.q_scale": ("I32", 2), "q.q_groups": ("I16", 1)},
    "AQLM": {"q.codes": ("I8", 3), "q.codebooks": ("F16", 4), "q.scales": ("F16", 4)},
    "EETQ": {"q.weight": ("I8", 2), "q.weight_scales": ("F16", 1)},
    "integers with scales": {"q.weight": ("I8", 2), "q.weight_scale": ("F32", 2)},
    "FP8 with scales, torchao": {"q._weight_qdata": (FP8, 2), "q._weight_scale": ("F32", 2)},
    "TensorRT-LLM": {"q.weight": (FP8, 2), "q.weights_scaling_factor": ("F32", 0)},
    "FP8 with scales, below the weight": {"q.weight": (FP8, 2), "q.weight._scale_inv": ("F32", 1)},
    "FP8 with scales, largest numbers": {"q.weight": (FP8, 2), "q.weight_amax": ("F32", 1)},
    "integers with scales, torchao": {"q._weight_qdata": ("U8", 2), "q._weight_scale": ("BF16", 2)},
    "integers with scales, experts": {"experts.w13_weight": ("I8", 3), "experts.w13_weight_scale": ("F32", 2)},
    "TensorRT-LLM, integers": {"q.weight": ("I8", 2), "q.per_channel_scale": ("F16", 1)},
    "MLX": {"q.weight": ("U32", 2), "q.scales": ("F16", 2), "q.biases": ("F16", 2)},
    "torchao": {"q.weight:_data": ("U8", 2), "q.weight:_scale": ("F32", 2)},
    "Transformer Engine FP8": {"q.weight._data": ("U8", 2), "q.weight._scale_inv": ("F32", 1)},
    "SVDQuant": {"q.qweight": ("I8", 2), "q.wscales": ("BF16", 2), "q.proj_down": ("BF16", 2)},
    "SqueezeLLM": {"q.qweight": ("I32", 2), "q.lookup_table": ("F16", 2)},
    "packed integers": {"q.qweight": ("I32", 3), "q.lut4": ("F16", 2)},
    "Marlin": {"q.B": ("I32", 2), "q.s": ("F16", 2), "q.workspace": ("I32", 1)},
    "SpQR": {"q.dense_weights": ("I64", 1), "q.row_offsets": ("I32", 1), "q.col_vals": ("I32", 1)},
    "VPTQ": {"q.indices": ("I32", 3), "q.centroids.weight": ("BF16", 2), "q.weight_scale": ("BF16", 1)},
    "MXFP4, as it was trained": {"mlp1_weight.blocks": ("U8", 4), "mlp1_weight.scales": ("U8", 3)},
    "compressed-tensors (sparse)": {"q.compressed": ("BF16", 2), "q.bitmask": ("U8", 2)},
    "HQQ, settings apart": {"q.W_q": ("U8", 2), "q.meta.scale": ("F16", 2)},
    "integers in a format that is not known": {"q.weight": ("U8", 2), "q.bias": ("F32", 1)},
}

#: Networks that are none of these.
PLAIN = {
    "a cast to FP8": {"q.weight": (FP8, 2), "q.bias": (FP8, 1), "norm.weight": (FP8, 1)},
    "CLIP cast to FP8": {"text_projection": (FP8, 2), "logit_scale": ("F32", 0), "proj.weight": (FP8, 2)},
    "attention with a matrix called W_q": {"attention.W_q": ("F32", 2), "attention.W_k": ("F32", 2)},
    "a scale that is learnt": {"conv.weight": ("F32", 4), "conv.weight_scale": ("F32", 1), "input_scale": ("F32", 0)},
    "a vector quantiser": {"quantizer.codebooks": ("F32", 3), "encoder.weight": ("F32", 2)},
    "its codes": {"q.codes": ("I64", 2), "q.codebooks": ("F32", 3), "q.scales": ("F32", 1), "q.indices": ("I64", 2)},
    "a graph network": {"conv.g_idx": ("I64", 1), "conv.weight": ("F32", 2)},
    "matrices of floats called so": {
        **{"a.W_q": ("F32", 2), "a.scale": ("F32", 1), "a.zero": ("F32", 1), "a.B": ("F32", 2), "a.s": ("F32", 1)},
        **{"a.q_weight": ("F32", 2), "a.q_scale": ("F32", 1), "a.qweight": ("F32", 2), "a.scales": ("F32", 1)},
    },
    "blocks and scales of floats": {"e_blocks": ("F32", 2), "e_scales": ("F32", 1), "c.weight_scales": ("F32", 1)},
    "a window's index beside a scale": {"a.relative_position_index": ("I32", 2), "a.scale": ("F32", 1)},
    "a cast to FP8 with a scale of its own": {"a.weight": (FP8, 2), "a.layer_scale": ("F32", 1)},
    "parameters at the top, cast to FP8": {"positional_embedding": (FP8, 2), "scale": ("F32", 1)},
    "calibrated, not yet quantised": {"q.weight": ("BF16", 2), "q.weight_quantizer._amax": ("F32", 2)},
    "integer buffers": {"position_ids": ("I64", 2), "relative_position_index": ("I64", 2), "w": ("F32", 2)},
    "layer scale": {"blocks.0.ls1.gamma": ("F32", 1), "blocks.0.attn.scale": ("F32", 1), "blocks.0.w": ("BF16", 2)},
}


@pytest.mark.parametrize("case", QUANTISED)
def test_every_format_is_recognised_by_its_tensors(case: str) -> None:
    tensors = {f"model.layers.0.{name}": info for name, info in QUANTISED[case].items()}
    quantised = find_quantised({"model.embed.weight": ("BF16", 2), **tensors})
    assert quantised is not None
    assert case.split(",")[0] in quantised.format
    assert quantised.evidence in tensors


@pytest.mark.parametrize("case", PLAIN)
def test_networks_that_are_not_quantised_are_left_in_peace(case: str) -> None:
    assert find_quantised(PLAIN[case]) is None


CONFIGS = {
    "at the top": ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    "of the text model": ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
    "deeper": ({"thinker_config": {"text_config": {"quantization_config": {"quant_method": "awq"}}}}, "awq"),
    "of a decoder": ({"decoder": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
    "of MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    "of sparse weights": ({"compression_config": {"format": "pack-quantized"}}, "an unnamed format"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_says_that_weights_are_quantised(case: str, tmp_path: Path) -> None:
    config, method = CONFIGS[case]
    quantised = find_quantised_folder(tmp_path, config)
    assert quantised is not None
    assert quantised.format == method
    assert find_quantised_folder(tmp_path, {"quantization_config": None, "text_config": {}}) is None


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_file_of_a_quantiser_says_so_too(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    quantised = find_quantised_folder(tmp_path, {})
    assert quantised is not None
    assert quantised.evidence == name


def fp8_state(value: float, scale: float) -> dict[str, torch.Tensor]:
    weight = torch.full((2, 2), value).to(torch.float8_e4m3fn)
    return {"q.weight": weight, "q.weight_scale": torch.tensor(scale), "b": torch.ones(2)}


@pytest.mark.parametrize("place", ["model", "base"])
def test_a_quantised_file_is_refused_in_every_role(place: str, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("packed", "plain")}
    packed = {"q.W_q": torch.ones(1, 2, dtype=torch.uint8), "q.scale": torch.ones(2), "q.zero": torch.zeros(2)}
    ws.save_checkpoint({**packed, "b": torch.ones(2)}, paths["packed"])
    ws.save_checkpoint({"q.weight": torch.ones(2, 2), "b": torch.ones(2)}, paths["plain"])
    base = paths["packed"] if place == "base" else paths["plain"]
    model = paths["plain"] if place == "base" else paths["packed"]
    with pytest.raises(CheckpointError, match=r"packed\.safetensors is quantised: HQQ"):
        ws.merge_files([model], tmp_path / "out.safetensors", method="ties", base=base)
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())


def test_quantised_states_in_memory_are_refused() -> None:
    with pytest.raises(CheckpointError, match="model 1 is quantised: FP8 with scales"):
        ws.merge([fp8_state(4.0, 0.25), fp8_state(1.0, 3.0)])


def test_a_folder_whose_configuration_is_quantised_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        ws.save_checkpoint({"q.weight": torch.ones(2, 2)}, tmp_path / name)
    (tmp_path / "b" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match=r"b is quantised: gptq \(quantization_config in config.json\)"):
        ws.merge_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", dry_run=True)


def test_soups_and_paths_of_quantised_weights_are_refused_too() -> None:
    states = [fp8_state(4.0, 0.25), fp8_state(1.0, 3.0)]
    for combine in (lambda: ws.uniform_soup(states), lambda: ws.interpolate(*states, 0.5)):
        with pytest.raises(CheckpointError, match="is quantised"):
            combine()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_dtypes_of_numbers_that_share_scales_are_named_quantised(dtype: str, tmp_path: Path) -> None:
    header = json.dumps({"q.weight": {"dtype": dtype, "shape": [4, 4], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=f"'{dtype}': the model is quantised"):
        ws.merge_files([path, path], tmp_path / "out.safetensors")


def test_powers_of_two_that_scale_nothing_are_refused(tmp_path: Path) -> None:
    state = {"q.weight": torch.ones(4, 4), "q.exponents": torch.ones(4).to(torch.float8_e8m0fnu)}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    assert torch.equal(ws.load_checkpoint(tmp_path / "a.safetensors")["q.exponents"].float(), torch.ones(4))
    with pytest.raises(CheckpointError, match=r"scales that are powers of two \(E8M0\) \(q\.exponents\)"):
        ws.merge_files([tmp_path / "a.safetensors"] * 2, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="is quantised"):
        ws.merge([state, state])


def test_packed_weights_of_torch_are_refused_not_lost(tmp_path: Path) -> None:
    packed = {
        "0.scale": torch.ones(()),
        "0._packed_params._packed_params": (torch.ones(2, 2), None),
        "1.weight": torch.ones(2),
    }
    torch.save(packed, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"is quantised: torch\.ao\.quantization"):
        ws.merge_files([tmp_path / "a.pt"] * 2, tmp_path / "out.safetensors")


def test_the_model_below_an_adapter_is_named_quantised(tmp_path: Path) -> None:
    ws.save_checkpoint({"q.weight": torch.ones(2, 2)}, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    factors = {f"base_model.model.q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    ws.save_checkpoint(factors, tmp_path / "x.safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "x.safetensors").rename(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    with pytest.raises(CheckpointError, match=r"^model is quantised: fp8"):
        ws.merge_files([f"{tmp_path}/model+{tmp_path}/adapter"], tmp_path / "out", method="passthrough")


def test_a_folder_of_gguf_files_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"It holds model-Q4_K_M\.gguf: name the file itself"):
        ws.merge_files([tmp_path / "a"] * 2, tmp_path / "out")
