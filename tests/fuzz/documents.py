"""Small files of every kind that the library reads, all of them right: what the mutations begin with."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import torch
import yaml
from mutations import rewritten_zip

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.connectivity import BarrierMatrix, Curve, Plane
from weightspace.labels import LabelMetric
from weightspace.soups import Row, SoupReport
from weightspace.symmetry import Element, Permutation, PermutationSpec, SymmetrySpec

SPEC = """\
weightspace_spec: 1
groups:
  g: 4
  heads: 2
  inner: {size: 2, inside: heads}
tensors:
  a.weight: g 3
  b.weight: (heads [inner]) g
  b.bias: (heads [inner])
  n.mean: g
statistics: [n.mean]
frozen: []
verification: {error: 0.0, tolerance: 0.001, groups: 3}
"""

SYMMETRIES = """\
weightspace_spec: 1
groups:
  g: {size: 4, kind: orthogonal, fixes: ones}
  heads: {size: 2, kind: permutation}
  inner: {size: 2, inside: heads, kind: phases}
  m: {size: 3, kind: signed}
tensors:
  a.weight: ±m g
  b.weight: (heads [inner]) g*
  b.bias: (heads [inner])
  n.weight: '4'
statistics: []
folds:
- gain: n.weight
  shift: null
  readers:
  - {weight: b.weight, axis: 1, bias: b.bias}
frozen: []
verification: {error: 0.0, tolerance: 0.001, groups: 4}
"""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "layer_types": ["full_attention", "full_attention"],
    "time_step_limit": [0.0, 1.0, 2.0],
    "vocab_size": 3,
}

TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 0, "content": "a", "special": True}],
}

ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "rank_pattern": {"mlp.*": 2, "q_proj": 2},
    "alpha_pattern": {r"layers\.\d+\.q_proj": 8},
    "target_modules": ["q_proj"],
    "modules_to_save": None,
    "use_rslora": True,
    "bias": "none",
}

RECIPE: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.6, "density": [1, 0.5, 0]}},
        {"model": "b", "parameters": {"weight": [{"filter": "q_proj", "value": [0, 1]}, {"value": 0.5}]}},
    ],
    "parameters": {"normalize": True, "int8_mask": True, "lambda": 0.5},
    "dtype": "bfloat16",
    "tokenizer_source": "base",
}

SLICES: dict[str, Any] = {
    "merge_method": "passthrough",
    "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, 2]}]},
    ],
    "out_dtype": "float32",
}


_GRID = ((1.0, 2.0), (3.0, 4.0))


def language_model(seed: int) -> StateDict:
    """Return a small model with the names of Llama."""
    generator = torch.Generator().manual_seed(seed)
    names = {f"model.layers.{layer}.self_attn.q_proj.weight": (4, 4) for layer in range(2)}
    names |= {"model.embed_tokens.weight": (3, 4), "model.norm.weight": (4,), "lm_head.weight": (3, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


def model_folder(path: Path, seed: int = 0) -> Path:
    """Write a model as transformers does."""
    ws.save_checkpoint(language_model(seed), path)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"0": {"content": "a"}}}))
    (path / "generation_config.json").write_text("{}")
    return path


def sharded_folder(path: Path) -> Path:
    """Write a model in two shards with an index."""
    model_folder(path)
    state = language_model(0)
    (path / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": list(state)[:3], "model-00002-of-00002.safetensors": list(state)[3:]}
    for shard, names in shards.items():
        ws.save_checkpoint({name: state[name] for name in names}, path / shard)
    places = {name: shard for shard, names in shards.items() for name in names}
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 9}, "weight_map": places})
    )
    return path


def adapter_folder(path: Path, weights: str = "adapter_model.safetensors") -> Path:
    """Write a LoRA adapter as PEFT does."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    path.mkdir()
    ws.save_checkpoint(
        {f"{module}.lora_A.weight": torch.ones(2, 4), f"{module}.lora_B.weight": torch.ones(4, 2)},
        path / weights,
    )
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return path


def checkpoint(path: Path) -> Path:
    """Write a state dict with all that a file can have."""
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"w": weight, "tied": weight, "n": torch.tensor(3), "h": torch.ones(3).bfloat16(), "e": torch.empty(0, 3)}
    ws.save_checkpoint(state, path, metadata={"method": "linear", "inputs": '[{"name": "a", "sha256": ""}]'})
    return path


def gguf_file(path: Path) -> Path:
    """Write a GGUF file of a known family."""
    state = {"model.embed_tokens.weight": torch.randn(8, 32), "model.norm.weight": torch.ones(32)}
    return gguf_models.write_gguf(path, state, "gemma2", "Q8_0")


def old_torch_file(path: Path) -> Path:
    """Write a torch file of the old format."""
    weight = torch.ones(2, 3)  # one storage: they are sorted by their addresses
    content = {"state_dict": {"w": weight, "b": weight[0]}, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(_with_numbered_storages(path.read_bytes()))
    return path


def _with_numbered_storages(content: bytes) -> bytes:
    """Return a torch file of the old format whose storages are called 0, 1, …, not by their addresses in memory."""
    names: dict[bytes, bytes] = {}

    def renamed(match: re.Match[bytes]) -> bytes:
        name = names.setdefault(match[1], str(len(names)).encode())
        return b"X" + struct.pack("<I", len(name)) + name

    return re.sub(rb"X.\0\0\0(\d{9,20})", renamed, content)


def spec_file(path: Path, text: str = SPEC) -> Path:
    """Write a spec that was verified."""
    (path.parent / "draft.yaml").write_text(text)
    from weightspace.symmetry.kinds.verified import read_spec

    read_spec(path.parent / "draft.yaml")[0].save(path)
    (path.parent / "draft.yaml").unlink()
    return path


def symmetries_file(path: Path) -> Path:
    """Write a spec of a larger symmetry that was verified."""
    return spec_file(path, SYMMETRIES)


def element_file(path: Path) -> Path:
    """Write an element for ``spec.yaml`` beside it."""
    spec = SymmetrySpec.load(symmetries_file(path.with_name("spec.yaml")))
    Element.random(spec, seed=0).save(path)
    return path


def permutation_file(path: Path) -> Path:
    """Write a permutation for ``spec.yaml`` beside it."""
    spec = PermutationSpec.load(spec_file(path.with_name("spec.yaml")))
    Permutation.random(spec, seed=0).save(path)
    return path


def metric_file(path: Path) -> Path:
    """Write a metric on a small tree."""
    LabelMetric.from_tree({"root": None, "a": "root", "b": "root", "c": "b"}).save(path)
    return path


def npz_file(path: Path) -> Path:
    """Write arrays."""
    np.savez_compressed(path, scores=np.eye(3), more=np.arange(4))
    path.write_bytes(rewritten_zip(path.read_bytes(), lambda name, record: [(name, record)], zipfile.ZIP_DEFLATED))
    return path


def npy_file(path: Path) -> Path:
    """Write an array."""
    np.save(path, np.eye(3))
    return path


def curve_file(path: Path) -> Path:
    """Write a curve, ``.json`` or ``.csv``."""
    Curve((0.0, 0.5, 1.0), (1.0, 2.0, 1.0), (0.5, 0.25, 0.5), "test", "none", "digits-mlp").save(path)
    return path


def idx_file(path: Path) -> Path:
    """Write an IDX file."""
    path.write_bytes(gzip.compress(struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3) + bytes(6), mtime=0))
    return path


def sentencepiece() -> bytes:
    """Return a SentencePiece model of a few pieces: text, score and type of each."""
    pieces = [b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\x80\xbf\x18\x01" for text in (b"<unk>", b"a", b"bc")]
    return b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in pieces)


def barriers_file(path: Path) -> Path:
    """Write barriers between two models, ``.json`` or ``.csv``."""
    BarrierMatrix(("a", "b"), ((0.0, 1.5), (1.5, 0.0)), (0.5, 0.25), task="digits-mlp").save(path)
    return path


def plane_file(path: Path) -> Path:
    """Write a plane of two rows and two columns."""
    Plane(("a", "b", "c"), ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), (0.1, 0.2, 0.3), (0.0, 1.0), (0.0, 1.0), _GRID).save(
        path
    )
    return path


def soup_report_file(path: Path) -> Path:
    """Write a report of a soup of two."""
    scores = {"test": {"accuracy": 0.5, "loss": 1.0}}
    row = Row("uniform", scores, 1, (0, 1))
    SoupReport("digits-mlp", "accuracy", ("a", "b"), {"test": (scores["test"],) * 2}, (row,)).save(path)
    return path


def recipe_text(recipe: dict[str, Any]) -> str:
    """Return a recipe as people write it."""
    return yaml.safe_dump(recipe, sort_keys=False)
