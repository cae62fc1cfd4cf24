"""Tiny models as Hugging Face folders, and as GGUF files written by the gguf package in llama.cpp's layout.

The conversion is that of llama.cpp's convert_hf_to_gguf.py: names from the package, and its permutation and offset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from weightspace.checkpoints import StateDict

VOCABULARY, WIDTH, LAYERS, HEADS, KEY_HEADS, SIZE, INNER = 96, 64, 2, 4, 2, 16, 96

#: Architecture in GGUF -> model_type of transformers.
FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}


def network(family: str, seed: int = 0) -> Any:
    """Return a tiny network of transformers with random weights, also of norms and biases."""
    import transformers

    config = transformers.AutoConfig.for_model(
        FAMILIES[family],
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=SIZE,
        max_position_embeddings=128,
        tie_word_embeddings=family.startswith("gemma"),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).bfloat16().float()
    return model


def folder(path: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> StateDict:
    """Write a tiny network as a folder, and return its tensors as they are stored."""
    model = network(family, seed).to(dtype)
    model.save_pretrained(path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if not (family.startswith("gemma") and "lm_head" in name)}


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of Q or K in the order of llama.cpp."""
    parts = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return parts.swapaxes(1, 2).reshape(weights.shape)


def gguf_tensors(state: StateDict, family: str) -> dict[str, np.ndarray]:
    """Return tensors in float32 as llama.cpp's converter names and arranges them."""
    kind = "llama" if family == "mistral" else family
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, LAYERS)
    found: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        weights = tensor.float().numpy()
        if kind == "llama" and ".q_proj." in name:
            weights = permuted(weights, HEADS)
        if kind == "llama" and ".k_proj." in name:
            weights = permuted(weights, KEY_HEADS)
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            weights = weights + 1
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None
        found[theirs] = weights
    return found


def write_gguf(
    path: Path, state: StateDict, family: str, kind: str = "F32", *, frequencies: bool = False, **fields: int
) -> Path:
    """Write tensors as a GGUF file: matrices of a type, vectors in float32.

    Args:
        path: the file.
        state: tensors under Hugging Face names.
        family: a key of ``FAMILIES``.
        kind: name of the matrices' type that the gguf package can quantise to.
        frequencies: add the factors of rotary frequencies that the converter computes for Llama 3.1.
        fields: further metadata, numbers.
    """
    architecture = "llama" if family == "mistral" else family
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {family}")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(SIZE)
    writer.add_value_length(SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"▁{number}" for number in range(VOCABULARY - 3))]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(VOCABULARY)])
    writer.add_token_types([2, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in fields.items():
        writer.add_uint32(key, value)
    if frequencies:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, SIZE // 2, dtype=np.float32))
    for name, weights in gguf_tensors(state, family).items():
        own = gguf.GGMLQuantizationType[kind if weights.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(weights, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def folder_names(family: str) -> list[str]:
    """Return the names of a family's tensors in transformers."""
    return list(network(family).state_dict())
