"""Experts are written as FP8 matrices, one per expert and projection, whether the models' are fused or not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict, load_dequantised
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files, reproduce
from weightspace.merging.plan.fused_experts import FAMILIES

EXPERTS, HIDDEN, INNER = 3, 256, 128
SCHEMES = ("fp8-tensor", "fp8-channel", "fp8-block")
PREFIX = "model.layers.0.mlp.experts"


def separate(seed: int, inner: int = INNER) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate_proj": (inner, HIDDEN), "up_proj": (inner, HIDDEN), "down_proj": (HIDDEN, inner)}
    state = {
        f"{PREFIX}.{expert}.{part}.weight": torch.randn(shape, generator=generator).bfloat16()
        for expert in range(EXPERTS)
        for part, shape in shapes.items()
    }
    return {**state, "model.layers.0.mlp.gate.weight": torch.randn(EXPERTS, HIDDEN, generator=generator).bfloat16()}


def fused(state: StateDict) -> StateDict:
    """Return the same model with fused experts."""

    def stacked(*parts: str) -> Tensor:
        names = [[f"{PREFIX}.{expert}.{part}.weight" for part in parts] for expert in range(EXPERTS)]
        return torch.stack([torch.cat([state[name] for name in own]) for own in names])

    others = {name: tensor for name, tensor in state.items() if PREFIX not in name}
    experts = {"gate_up_proj": stacked("gate_proj", "up_proj"), "down_proj": stacked("down_proj")}
    return {**others, **{f"{PREFIX}.{name}": tensor for name, tensor in experts.items()}}


def folder(path: Path, state: StateDict, *, inner: int = INNER, model_type: str = "qwen3_moe", **config: Any) -> Path:
    ws.save_checkpoint(state, path)
    sizes = {"hidden_size": HIDDEN, "moe_intermediate_size": inner, "intermediate_size": 999}
    (path / "config.json").write_text(json.dumps({"model_type": model_type, "dtype": "bfloat16", **sizes, **config}))
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_fused_experts_are_written_like_separate_ones(scheme: str, nested: bool, tmp_path: Path) -> None:
    config: dict[str, Any] = {}
    if nested:
        own = {"model_type": "qwen3_5_moe_text", "hidden_size": HIDDEN, "moe_intermediate_size": INNER}
        config = {"model_type": "qwen3_5_moe", "text_config": own}
    models: dict[str, list[Path]] = {"separate": [], "fused": []}
    for seed in (0, 1):
        models["separate"].append(folder(tmp_path / f"separate-{seed}", separate(seed), **config))
        models["fused"].append(folder(tmp_path / f"fused-{seed}", fused(separate(seed)), **config))
    options = OutputOptions(shard_size=150_000)
    merge_files(models["separate"], tmp_path / "out", quantise=scheme, output=options)
    execution = ExecutionOptions(executor="processes", workers=2) if nested else ExecutionOptions()
    report = merge_files(models["fused"], tmp_path / "out-fused", quantise=scheme, output=options, execution=execution)
    assert any("a matrix per expert and projection" in line for line in report.warnings)
    expected, found = (ws.load_checkpoint(tmp_path / name) for name in ("out", "out-fused"))
    assert report.tensors == len(found) == 19
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].float(), tensor.float()), name
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "out-fused")]
    assert configs[0] == configs[1]
    assert reproduce(tmp_path / "out-fused").equal


UNKNOWN: dict[str, dict[str, Any]] = {
    "another family": {"model_type": "qwen3_vl_moe"},  # which stores them transposed
    "other sizes": {"hidden_size": 2 * INNER, "moe_intermediate_size": HIDDEN},
    "no sizes": {"moe_intermediate_size": None},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_experts_that_are_fused_in_an_unknown_way_stay_plain(case: str, tmp_path: Path) -> None:
    state = {**fused(separate(0)), "model.layers.0.q_proj.weight": torch.randn(128, 128).bfloat16()}
    model = folder(tmp_path / "a", state, **UNKNOWN[case])
    report = merge_files([model], tmp_path / "out", method="passthrough", quantise="fp8-block")
    assert any("not known how these experts are fused: model.layers.0.mlp" in line for line in report.warnings)
    found = ws.load_checkpoint(tmp_path / "out")
    assert found[f"{PREFIX}.gate_up_proj"].dtype == torch.bfloat16
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert PREFIX in config["modules_to_not_convert"]


@pytest.mark.parametrize("shape", [fused, lambda state: state], ids=["fused", "separate"])
def test_experts_that_have_no_whole_blocks_stay_plain_and_are_named(shape: Any, tmp_path: Path) -> None:
    state = {**shape(separate(0, 192)), "model.layers.0.q_proj.weight": torch.randn(128, 128).bfloat16()}
    model = folder(tmp_path / "a", state, inner=192)
    report = merge_files([model], tmp_path / "out", method="passthrough", quantise="fp8-block")
    assert any("their sides are not multiples of 128: model.layers.0.mlp" in line for line in report.warnings)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert PREFIX in config["modules_to_not_convert"]
    assert {*state} - {*ws.load_checkpoint(tmp_path / "out")} == set()


def fp8(state: StateDict) -> StateDict:
    """Return a model with fused experts as FP8 tensors with a scale per block."""
    found = {}
    for name, tensor in state.items():
        if not name.endswith("_proj"):
            found[name] = tensor
            continue
        experts, rows, columns = tensor.shape
        blocks = tensor.float().view(experts, rows // 128, 128, columns // 128, 128)
        scales = blocks.abs().amax((2, 4)) / 448
        found[name] = (blocks / scales[:, :, None, :, None]).to(torch.float8_e4m3fn).view(tensor.shape)
        found[f"{name}_scale_inv"] = scales
    return found


def test_models_whose_fused_experts_are_fp8_are_merged_into_fp8(tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    states = [fp8(fused(separate(seed))) for seed in (0, 1)]
    models = [folder(tmp_path / f"{seed}", state, quantization_config=settings) for seed, state in enumerate(states)]
    report = merge_files(models, tmp_path / "out")
    assert any("9 matrices are written as FP8 numbers (fp8-block)" in line for line in report.warnings)
    found = load_dequantised(tmp_path / "out")
    wide = ws.merge([{name: tensor.float() for name, tensor in load_dequantised(model).items()} for model in models])
    assert found.keys() == separate(0).keys()
    for name, tensor in fused(found).items():
        assert (tensor.float() - wide[name]).norm() <= 0.03 * wide[name].norm()


@pytest.mark.parametrize("is_fused", [True, False])
def test_transformers_loads_a_merge_of_mixtures_of_experts_into_fp8(is_fused: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        **{"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 32, "dtype": "bfloat16"},
        **{"num_experts": 4, "num_experts_per_tok": 2},
    )
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = transformers.Qwen3MoeForCausalLM(config).bfloat16()
        models.append(tmp_path / f"{seed}")
        network.save_pretrained(models[-1])
        if is_fused:
            ws.save_checkpoint(network.state_dict(), models[-1] / "model.safetensors")
    merge_files(models, tmp_path / "plain")
    merge_files(models, tmp_path / "fp8", quantise="fp8-block")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        network, reference = (
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
            for name in ("fp8", "plain")
        )
        found, expected = network(tokens).logits, reference(tokens).logits
    assert 1e-3 * expected.norm() < (found - expected).norm() < 0.1 * expected.norm()
    ours = load_dequantised(tmp_path / "fp8")
    for expert in range(4):
        prefix = f"model.layers.0.mlp.experts.{expert}"
        gates = torch.cat([ours[f"{prefix}.{part}.weight"] for part in ("gate_proj", "up_proj")])
        assert torch.equal(network.state_dict()["model.layers.0.mlp.experts.gate_up_proj"][expert], gates)


def test_transformers_reads_both_forms_of_these_families() -> None:
    mapping = pytest.importorskip("transformers.conversion_mapping")
    sources = ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"]
    for family in FAMILIES - {"qwen3_5_moe"}:  # whose text_config is in the table
        converters = mapping.get_checkpoint_conversion_mapping(family)
        fusing = [one for one in converters if getattr(one, "_original_source_patterns", None) == sources]
        assert [one._original_target_patterns for one in fusing] == [["mlp.experts.gate_up_proj"]], family
