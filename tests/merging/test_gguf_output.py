"""GGUF files as outputs of merges, against the gguf package and transformers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import load_metadata
from weightspace.checkpoints.gguf.block_types import BY_NAME
from weightspace.checkpoints.gguf.name_maps import Layout
from weightspace.checkpoints.gguf.quantise import quantise_q8_0
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions
from weightspace.merging.out_of_core.packing import packed
from weightspace.merging.plan.plan import Packed


def pair(tmp_path: Path, family: str, kind: str = "F32") -> tuple[Path, Path]:
    """Return a GGUF file and a folder of one family."""
    state = gguf_models.folder(tmp_path / "hf0", family, 0)
    gguf_models.folder(tmp_path / "hf1", family, 1)
    return gguf_models.write_gguf(tmp_path / "a.gguf", state, family, kind), tmp_path / "hf1"


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return the type and bytes of each tensor of a file, as the gguf package reads it."""
    return {own.name: (own.tensor_type.name, own.data.tobytes()) for own in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    """Return the fields of a file, as the gguf package reads it."""
    found = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    return {key: value for key, value in found.items() if not key.startswith(("GGUF.", "weightspace."))}


def expected(state: dict[str, torch.Tensor], family: str, kind: str) -> dict[str, tuple[str, bytes]]:
    """Return the same of a state dict, converted and quantised by the gguf package."""
    found = {}
    for name, weights in gguf_models.gguf_tensors(state, family).items():
        own = gguf.GGMLQuantizationType[kind if weights.ndim > 1 else "F32"]
        found[name] = own.name, gguf.quantize(weights, own).tobytes()
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", gguf_models.FAMILIES)
def test_tensors_are_those_that_the_gguf_package_makes_of_the_merge(family: str, kind: str, tmp_path: Path) -> None:
    models = pair(tmp_path, family)
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind)
    quantise = None if dtype else "q8_0"
    ws.merge_files(models, tmp_path / "wide.safetensors", dtype="float32")
    ws.merge_files(models, tmp_path / "out.gguf", dtype=dtype, quantise=quantise)
    merged = ws.load_checkpoint(tmp_path / "wide.safetensors")
    assert tensors(tmp_path / "out.gguf") == expected(merged, family, kind)
    assert (
        fields(tmp_path / "out.gguf")["general.file_type"]
        == gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]
    )


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_file_comes_back_from_a_folder_with_equal_bytes(family: str, kind: str, tmp_path: Path) -> None:
    path, _ = pair(tmp_path, family, kind)
    ws.merge_files([path], tmp_path / "folder", method="passthrough")
    ws.save_checkpoint(ws.load_checkpoint(tmp_path / "folder"), tmp_path / "plain.safetensors")
    recipe = tmp_path / "back.yml"
    plain = tmp_path / "plain.safetensors"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {plain}}}]\nbase_model: {path}\n")
    ws.merge_files(recipe, tmp_path / "back.gguf")
    assert tensors(tmp_path / "back.gguf") == tensors(path)
    assert fields(tmp_path / "back.gguf") == fields(path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@torch.no_grad()
def test_transformers_computes_the_same_from_the_file_as_from_the_merged_folder(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path, other = pair(tmp_path, family)
    ws.merge_files([other, path], tmp_path / "out", dtype="float32")
    ws.merge_files([other, path], tmp_path / "out.gguf", dtype="float32")
    config = gguf_models.network(family).config
    load = transformers.AutoModelForCausalLM.from_pretrained
    folder = load(tmp_path / "out", dtype=torch.float32).eval()
    file = load(tmp_path, gguf_file="out.gguf", config=config, dtype=torch.float32).eval()
    ids = torch.arange(24)[None] * 5 % gguf_models.VOCABULARY
    assert torch.equal(folder(ids).logits, file(ids).logits)


def test_quantised_inputs_of_one_type_give_that_type(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, "llama", "Q8_0")
    other = gguf_models.write_gguf(tmp_path / "b.gguf", ws.load_checkpoint(tmp_path / "hf1"), "llama", "Q8_0")
    ws.merge_files([path, other], tmp_path / "out.gguf")
    assert {kind for kind, _ in tensors(tmp_path / "out.gguf").values()} == {"Q8_0", "F32"}
    assert fields(tmp_path / "out.gguf")["general.quantization_version"] == 2
    ws.merge_files([path, other], tmp_path / "plain.gguf", dtype="float16")
    assert {kind for kind, _ in tensors(tmp_path / "plain.gguf").values()} == {"F16", "F32"}
    ws.merge_files([path, other], tmp_path / "out.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in ws.load_checkpoint(tmp_path / "out.safetensors").values())
    assert ws.reproduce(tmp_path / "out.gguf").equal
    assert load_metadata(tmp_path / "out.gguf")["method"] == "linear"


def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    models = pair(tmp_path, "llama")
    quantise = {"scheme": "q8_0", "ignore": ["embed_tokens"]}
    ws.merge_files(models, tmp_path / "a" / "out.gguf", quantise=quantise)
    execution = ExecutionOptions(executor="processes", workers=2)
    ws.merge_files(models, tmp_path / "b" / "out.gguf", quantise=quantise, execution=execution)
    assert (tmp_path / "a" / "out.gguf").read_bytes() == (tmp_path / "b" / "out.gguf").read_bytes()
    assert tensors(tmp_path / "a" / "out.gguf")["token_embd.weight"][0] == "F32"


def test_rotary_frequencies_are_copied(tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "hf", "llama")
    path = gguf_models.write_gguf(tmp_path / "a.gguf", state, "llama", "F16", frequencies=True)
    ws.merge_files([path], tmp_path / "out.gguf", method="passthrough")
    assert tensors(tmp_path / "out.gguf") == tensors(path)


@pytest.mark.parametrize("layout", [Layout(), Layout(heads=4), Layout(shift=1.0)])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_chunks_of_any_size_give_the_same_bytes(layout: Layout, kind: str) -> None:
    values = torch.randn(48, 64)
    form = Packed("w", BY_NAME[kind], layout, 0)
    weights = values.numpy() + np.float32(layout.shift)
    weights = gguf_models.permuted(weights, 4) if layout.heads else weights
    whole = gguf.quantize(weights, gguf.GGMLQuantizationType[kind]).tobytes()
    for size in (1, 7, 32, 100, 768, 1000, 4000):
        parts = enumerate(values.flatten().split(size))
        found = bytearray(len(whole))
        for start, content in packed("w", TensorInfo("F32", (48, 64)), form, parts):
            found[start : start + len(content)] = content.numpy().tobytes()
        assert bytes(found) == whole


def test_q8_0_has_the_bytes_of_the_gguf_package() -> None:
    values = torch.randn(64, 1024) * torch.logspace(-12, 6, 64)[:, None]
    values[3, :64], values[4, :32], values[5, :32], values[5, 0] = 0, 0.5, torch.arange(32) - 15.5, 127
    theirs = gguf.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert quantise_q8_0(values.flatten(), "w").numpy().tobytes() == theirs.tobytes()
    with pytest.raises(WeightspaceError, match=r"'w' cannot be written in Q8_0: its largest element, 1e\+09"):
        quantise_q8_0(torch.full((32,), 1e9), "w")


def test_a_plan_can_be_pickled() -> None:
    form = Packed("w", BY_NAME["Q8_0"], Layout(heads=4), 34)
    assert pickle.loads(pickle.dumps(form)) == form


def test_outputs_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    path, other = pair(tmp_path, "llama")
    out = tmp_path / "out.gguf"

    def refused(
        message: str, models: list[Path] | Path, kind: type[Exception] = WeightspaceError, **options: Any
    ) -> None:
        with pytest.raises(kind, match=message) as caught:
            ws.merge_files(models, options.pop("out", out), **options)
        assert len(str(caught.value).splitlines()) == 1
        assert not out.exists()

    refused("no model is one. Name one of this architecture as base", [other, other], CheckpointError)
    refused("fp8-block cannot be written in a GGUF file; expected q8_0", [path, other], quantise="fp8-block")
    refused("q8_0 is written in GGUF files", [path, other], quantise="q8_0", out=tmp_path / "out.safetensors")
    refused("'model.embed_tokens.weight' would be F64", [path, other], dtype="float64")
    refused("needs finite values", [path], quantise="q8_0", output=OutputOptions(allow_nonfinite=True))
    refused("statistics of a network in a GGUF file", [path, other], finish=lambda state: state)
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {path}}}]\nchat_template: chatml\n")
    refused("keeps tokenizer and chat template of one of the models", recipe)
    recipe.write_text(
        "merge_method: passthrough\nslices:\n"
        + "".join(f"- sources: [{{model: {path}, layer_range: {span}}}]\n" for span in ("[0, 2]", "[1, 2]"))
    )
    refused("'model.layers.2.self_attn.q_proj.weight' has no place in the GGUF output", recipe, CheckpointError)
    recipe.write_text(f"merge_method: passthrough\nslices:\n- sources: [{{model: {path}, layer_range: [0, 1]}}]\n")
    refused("The merge has no 'blk.1", recipe, CheckpointError)
    with pytest.raises(CheckpointError, match="would be a folder, but its name ends like a file's"):
        ws.save_checkpoint({"w": torch.ones(2)}, out)


def test_types_of_a_family_that_is_not_known_are_kept(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, "llama", "F16")
    path.write_bytes(path.read_bytes().replace(b"token_embd.weight", b"token_embx.weight"))
    ws.merge_files([path, path], tmp_path / "out.gguf")
    assert tensors(tmp_path / "out.gguf") == tensors(path)
    with pytest.raises(WeightspaceError, match=r"'token_embx\.weight' cannot be written in BF16: .* is not known"):
        ws.merge_files([path, path], tmp_path / "other.gguf", dtype="bfloat16")


def test_a_token_with_two_ids_is_refused_and_other_fields_are_reported(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, "qwen2")
    other = gguf_models.write_gguf(tmp_path / "b.gguf", ws.load_checkpoint(tmp_path / "hf1"), "qwen2", "F16")
    content = other.read_bytes()
    key = b"qwen2.context_length\4\0\0\0"
    other.write_bytes(content.replace(key + b"\x80", key + b"\x40"))
    lines: list[str] = []
    ws.merge_files([path, other], tmp_path / "out.gguf", warn=lines.append)
    assert any("qwen2.context_length is 128 in a.gguf and 64 in b.gguf." in line for line in lines)
    other.write_bytes(content.replace("▁7".encode(), "▁x".encode(), 1).replace("▁8".encode(), "▁7".encode(), 1))
    with pytest.raises(WeightspaceError, match=r"'▁7' has id 10 in a\.gguf and 11 in b\.gguf \(1 tokens"):
        ws.merge_files([path, other], tmp_path / "out.gguf")


def test_tokens_and_hyperparameters_of_a_folder_are_compared(tmp_path: Path) -> None:
    path, other = pair(tmp_path, "llama")
    vocabulary = {"<unk>": 0, "▁0": 3, "▁1": 4}
    (other / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    config = json.loads((other / "config.json").read_text())
    lines: list[str] = []
    ws.merge_files([path, other], tmp_path / "out.gguf", warn=lines.append)
    assert not any("rope_theta" in line or "num_" in line for line in lines)
    config["rope_parameters"]["rope_theta"] = 500000.0
    (other / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    ws.merge_files([path, other], tmp_path / "out.gguf", warn=lines.append)
    assert "llama.rope.freq_base is 10000 in a.gguf, and rope_theta is 500000 in hf1." in lines
    assert "llama.attention.head_count_kv is 2 in a.gguf, and num_key_value_heads is 1 in hf1." in lines
    vocabulary["▁1"] = 5
    (other / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    with pytest.raises(WeightspaceError, match=r"'▁1' has id 4 in a\.gguf and 5 in hf1"):
        ws.merge_files([path, other], tmp_path / "out.gguf")


def test_an_adapter_is_added_to_a_file(tmp_path: Path) -> None:
    path, _ = pair(tmp_path, "llama", "Q8_0")
    adapter = tmp_path / "lora"
    adapter.mkdir()
    name = "model.layers.0.self_attn.q_proj"
    a, b = torch.randn(2, 64), torch.randn(64, 2)
    factors = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    ws.save_checkpoint(factors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    ws.merge_files([f"{path}+{adapter}"], tmp_path / "out.gguf", method="passthrough", dtype="float32")
    before, after = (ws.load_checkpoint(file) for file in (path, tmp_path / "out.gguf"))
    assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + b @ a, atol=1e-5)
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])


def test_rows_without_whole_blocks_are_written_in_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_models, "INNER", 80)
    models = pair(tmp_path, "qwen2")
    ws.merge_files(models, tmp_path / "out.gguf", quantise="q8_0")
    kinds = {name: kind for name, (kind, _) in tensors(tmp_path / "out.gguf").items()}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
