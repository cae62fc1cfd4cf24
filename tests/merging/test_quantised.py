"""Merges of quantised models equal those of the dequantised ones, bit for bit, on every executor."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict, load_dequantised
from weightspace.merging import ExecutionOptions, merge_files

SHAPES = {"model.layers.0.q": (700, 384), "model.layers.0.k": (130, 200)}


def fp8_model(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    state: StateDict = {"model.embed.weight": torch.randn(40, 8, generator=generator).bfloat16()}
    for module, (rows, columns) in SHAPES.items():
        state[f"{module}.weight"] = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
        state[f"{module}.weight_scale_inv"] = torch.rand(-(-rows // 128), -(-columns // 128), generator=generator)
    return state


def plain_model(seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, "model.embed": (40, 8)}
    return {f"{module}.weight": torch.randn(shape, generator=generator).bfloat16() for module, shape in shapes.items()}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return an FP8 model, the same one dequantised, and a model in bfloat16."""
    for name, state in {"fp8": fp8_model(0), "plain": plain_model(1)}.items():
        ws.save_checkpoint(state, tmp_path / f"{name}.safetensors")
    ws.save_checkpoint(load_dequantised(tmp_path / "fp8.safetensors"), tmp_path / "wide.safetensors")
    return tmp_path / "fp8.safetensors", tmp_path / "wide.safetensors", tmp_path / "plain.safetensors"


@pytest.mark.parametrize(
    ("method", "executor"),
    [
        *(
            (method, "threads")
            for method in ("linear", "slerp", "task_arithmetic", "ties", "model_stock", "tsv_m", "sce")
        ),
        ("linear", "processes"),
        ("karcher", "processes"),
    ],
)
def test_a_merge_equals_that_of_the_dequantised_model(
    method: str, executor: str, models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    fp8, wide, plain = models
    execution = ExecutionOptions(executor=executor, workers=2 if executor == "processes" else None)
    third = tmp_path / "third.safetensors"
    ws.save_checkpoint(plain_model(2), third)
    results = []
    for first in (fp8, wide):
        needs_base = method in ("task_arithmetic", "ties", "model_stock", "tsv_m", "sce")
        out = tmp_path / f"out-{first.stem}.safetensors"
        merge_files(
            [first, plain] if method != "model_stock" else [first, plain, third],
            out,
            method=method,
            base=plain if needs_base else None,
            parameters={"t": 0.3} if method == "slerp" else None,
            dtype="bfloat16",
            execution=execution,
        )
        results.append(ws.load_checkpoint(out))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_result_has_the_dtype_that_the_network_computes_in(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    fp8, wide, plain = models
    merge_files([fp8, plain], tmp_path / "out.safetensors", weights=[0.25, 0.75])
    merged = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    in_memory = ws.merge([ws.load_checkpoint(path) for path in (wide, plain)], weights=[0.25, 0.75])
    assert all(torch.equal(merged[name], in_memory[name].bfloat16()) for name in merged)


def test_a_passthrough_dequantises(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    fp8, wide, _ = models
    merge_files([fp8], tmp_path / "out.safetensors", method="passthrough", dtype="float32")
    found, expected = ws.load_checkpoint(tmp_path / "out.safetensors"), ws.load_checkpoint(wide)
    assert all(torch.equal(found[name], expected[name].float()) for name in found)


def test_an_adapter_on_a_quantised_model(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    fp8, wide, _ = models
    generator = torch.Generator().manual_seed(3)
    module, (rows, columns) = next(iter(SHAPES.items()))
    factors = {
        f"base_model.model.{module}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"base_model.model.{module}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }
    ws.save_checkpoint(factors, tmp_path / "x.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (tmp_path / "x.safetensors").rename(adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    for model in (fp8, wide):
        merge_files([f"{model}+{adapter}"], tmp_path / f"with-{model.name}", method="passthrough", dtype="float32")
    found, expected = (ws.load_checkpoint(tmp_path / f"with-{model.name}") for model in (fp8, wide))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found[f"{module}.weight"], ws.load_checkpoint(wide)[f"{module}.weight"])


def test_the_output_s_configuration_is_that_of_plain_weights(tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    for name, state in {"fp8": fp8_model(0), "plain": plain_model(1)}.items():
        ws.save_checkpoint(state, tmp_path / name)
        quantised = {"quantization_config": settings} if name == "fp8" else {}
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 8, "dtype": "bfloat16", **quantised}))
    (tmp_path / "fp8" / "hf_quant_config.json").write_text("{}")
    report = merge_files([tmp_path / "fp8", tmp_path / "plain"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"hidden_size": 8, "dtype": "bfloat16"}
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    line = "is dequantised while it is read, to float32: FP8, a scale per 128 × 128 block (2 tensors)"
    assert any(line in warning for warning in report.warnings)
    assert line in (tmp_path / "out" / "README.md").read_text()
    assert not any("configuration" in warning for warning in report.warnings)


def test_the_bytes_and_the_memory_of_quantised_tensors_are_counted(models: tuple[Path, Path, Path]) -> None:
    fp8, wide, plain = models
    reports = [merge_files([first, plain], "out.safetensors", dtype="bfloat16", dry_run=True) for first in (fp8, wide)]
    saved = sum(rows * columns for rows, columns in SHAPES.values()) * 3
    stored = sum(tensor.nbytes for name, tensor in fp8_model(0).items() if "scale" in name)
    assert reports[1].read_bytes - reports[0].read_bytes == saved - stored
    assert reports[0].memory > reports[1].memory
