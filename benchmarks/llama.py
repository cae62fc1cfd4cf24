"""Llama-shaped models to merge: a base of random weights and two fine-tunes, bf16 folders in Hugging Face's layout.

A tensor depends on the seed, its name and its model alone. A fine-tune is the base, rounded to bf16, plus noise.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

#: Model -> root mean square of its difference from the base.
CHANGES = {"base": 0.0, "a": 1e-3, "b": 2e-3}
#: Standard deviation of the base's matrices.
SCALE = 0.02

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The sizes of a model, and the number of its files."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    shards: int

    def shapes(self) -> Shapes:
        """Return name -> shape, in the order of the files."""
        wide, narrow = self.hidden, self.hidden // self.heads * self.key_value_heads
        layer = {
            "self_attn.q_proj": (wide, wide),
            "self_attn.k_proj": (narrow, wide),
            "self_attn.v_proj": (narrow, wide),
            "self_attn.o_proj": (wide, wide),
            "mlp.gate_proj": (self.inner, wide),
            "mlp.up_proj": (self.inner, wide),
            "mlp.down_proj": (wide, self.inner),
            "input_layernorm": (wide,),
            "post_attention_layernorm": (wide,),
        }
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocabulary, wide)}
        for number in range(self.layers):
            shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        return shapes | {"model.norm.weight": (wide,), "lm_head.weight": (self.vocabulary, wide)}

    def config(self) -> dict[str, object]:
        """Return what ``config.json`` says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


#: 618.7 million parameters, 1.24 GB; the widest matrices have 11.5 and 67 million elements.
LARGE = Llama(2048, 5632, 11, 32, 4, 32768, shards=3)
#: 8,004 tensors of at most 512 elements.
TINY = Llama(16, 32, 889, 2, 1, 32, shards=3)


def make_models(folder: Path, llama: Llama, seed: int = 0) -> None:
    """Write ``base``, ``a`` and ``b`` into the folder, unless it holds these very models."""
    stamp, content = folder / "models.json", {**asdict(llama), "changes": CHANGES, "scale": SCALE, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == content:
        return
    stamp.unlink(missing_ok=True)
    for model in CHANGES:
        (folder / model).mkdir(parents=True, exist_ok=True)
        _write_model(folder / model, llama, seed)
    stamp.write_text(json.dumps(content))


def make_tensor(name: str, shape: tuple[int, ...], model: str, seed: int) -> Tensor:
    """Return one tensor of one model."""
    mean, scale = (1.0, 0.05) if len(shape) == 1 else (0.0, SCALE)
    base = _noise(f"{seed}/base/{name}", shape).mul_(scale).add_(mean).bfloat16()
    if model == "base":
        return base
    return _noise(f"{seed}/{model}/{name}", shape).mul_(CHANGES[model]).add_(base).bfloat16()


def _noise(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))


def _write_model(folder: Path, llama: Llama, seed: int) -> None:
    """Write a model's files; one of them at a time is in memory."""
    places: dict[str, str] = {}
    for number, shapes in enumerate(_shards(llama), start=1):
        file = f"model-{number:05}-of-{llama.shards:05}.safetensors"
        tensors = {name: make_tensor(name, shape, folder.name, seed) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shapes, file)
    size = 2 * sum(torch.Size(shape).numel() for shape in llama.shapes().values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"word{n}": n for n in range(3, llama.vocabulary)}
    tokenizer = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None},
        **{"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    contents = {"model.safetensors.index.json": index, "config.json": llama.config()}
    contents |= {"tokenizer.json": tokenizer, "tokenizer_config.json": words}
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n")


def _shards(llama: Llama) -> Iterator[Shapes]:
    """Yield the shapes of each file: consecutive tensors, with about equally many bytes per file."""
    shapes = llama.shapes()
    share = sum(torch.Size(shape).numel() for shape in shapes.values()) / llama.shards
    files: list[Shapes] = [{} for _ in range(llama.shards)]
    before = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        files[int((before + size / 2) / share)][name] = shape
        before += size
    yield from files
