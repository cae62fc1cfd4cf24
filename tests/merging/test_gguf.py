"""Merges of GGUF files, also with Hugging Face folders, and what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf_models
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import summarise
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import CheckpointError


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q5_0"])
def test_a_merge_with_a_folder_is_that_of_the_dequantised_models(kind: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        gguf_models.folder(tmp_path / f"hf{seed}", "llama", seed)
    gguf_models.write_gguf(tmp_path / "a.gguf", ws.load_checkpoint(tmp_path / "hf0"), "llama", kind)
    ws.save_checkpoint(ws.load_checkpoint(tmp_path / "a.gguf"), tmp_path / "wide.safetensors")
    other = tmp_path / "hf1"
    lines: list[str] = []
    ws.merge_files([tmp_path / "a.gguf", other], tmp_path / "out.safetensors", dtype="bfloat16", warn=lines.append)
    ws.merge_files([tmp_path / "wide.safetensors", other], tmp_path / "expected.safetensors", dtype="bfloat16")
    found, expected = (ws.load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("out", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any("the rows of Q and K are put in its order" in line for line in lines)
    assert any(f"to float32: GGUF {kind} (16 tensors)" in line for line in lines) == (kind != "F16")


def test_two_files_keep_their_dtypes_in_a_folder(tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "hf", "llama")
    path = gguf_models.write_gguf(tmp_path / "a.gguf", state, "llama", "BF16")
    ws.merge_files([path, path], tmp_path / "out.safetensors")
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items() if tensor.ndim > 1} == dict.fromkeys(
        (name for name, tensor in state.items() if tensor.ndim > 1), torch.bfloat16
    )
    assert all(torch.equal(found[name].float(), tensor) for name, tensor in state.items())


def test_a_family_that_is_not_known_is_not_merged_with_a_folder(tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "hf", "llama")
    path = gguf_models.write_gguf(tmp_path / "a.gguf", state, "llama")
    content = path.read_bytes().replace(b"token_embd.weight", b"token_embx.weight")
    path.write_bytes(content)
    ws.merge_files([path, path], tmp_path / "out.safetensors")
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert torch.equal(found["token_embx.weight"], state["model.embed_tokens.weight"])
    with pytest.raises(CheckpointError, match="have no tensor in common"):
        ws.merge_files([path, tmp_path / "hf"], tmp_path / "out")


def test_rotary_frequencies_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "hf", "llama")
    path = gguf_models.write_gguf(tmp_path / "a.gguf", state, "llama", frequencies=True)
    lines: list[str] = []
    ws.merge_files([path, tmp_path / "hf"], tmp_path / "out.safetensors", warn=lines.append)
    assert ws.load_checkpoint(tmp_path / "out.safetensors").keys() == state.keys()
    assert any("left out, since the configuration determines it: rope_freqs.weight" in line for line in lines)


def test_summaries_name_the_types(tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "hf", "qwen2")
    gguf_models.write_gguf(tmp_path / "a.gguf", state, "qwen2", "Q5_0")
    found = summarise(tmp_path / "a.gguf")
    assert found.quantised == "GGUF Q5_0"
    assert found.metadata["general.architecture"] == "qwen2"
    assert "tokenizer.ggml.tokens" not in found.metadata


def test_planning_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    state = gguf_models.folder(tmp_path / "hf", "llama")
    path = gguf_models.write_gguf(tmp_path / "a.gguf", state, "llama", "Q8_0")
    code = f"""
import sys
import weightspace as ws
assert ws.merge_files([{str(path)!r}] * 2, {str(tmp_path / "out.gguf")!r}, dry_run=True, quantise="q8_0").tensors == 21
assert not {{"torch", "numpy", "gguf"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_contents(path).is_quantised("model.embed_tokens.weight")
    assert not read_contents(path).is_quantised("model.norm.weight")
