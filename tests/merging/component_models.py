"""Tiny random models in folders of components, made by the libraries that define them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

#: Letters, and the same at the end of a word: the vocabulary of a tokenizer without merges.
LETTERS = [*"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh")]


def sentence_model(folder: Path, seed: int, *, in_subfolder: bool = False) -> Path:
    """Save a sentence-transformers model of a tiny BERT, a pooling and a dense module."""
    import sentence_transformers
    from transformers import BertConfig, BertModel, BertTokenizerFast

    try:
        from sentence_transformers.sentence_transformer import modules
    except ImportError:
        from sentence_transformers import models as modules

    torch.manual_seed(seed)
    inner = folder.parent / f"{folder.name}-bert"
    inner.mkdir()
    (inner / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]))
    BertTokenizerFast(str(inner / "vocab.txt")).save_pretrained(inner)
    sizes: dict[str, int] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16)).save_pretrained(inner)
    parts = [modules.Transformer(str(inner)), modules.Pooling(16), modules.Dense(16, 8), modules.Normalize()]
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    shutil.rmtree(inner)
    if in_subfolder:  # the layout of sentence-transformers before version 3
        _move_transformer(folder)
    return folder


def _move_transformer(folder: Path) -> None:
    listed: list[dict[str, Any]] = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "0_Transformer").mkdir()
    names = ("config.json", "model.safetensors", "sentence_bert_config.json")
    for name in (*names, *(path.name for path in folder.glob("*token*")), "vocab.txt", "special_tokens_map.json"):
        if (folder / name).is_file():
            shutil.move(folder / name, folder / "0_Transformer" / name)


def pipeline(seed: int) -> Any:
    """Return a Stable Diffusion pipeline with random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    text: dict[str, int] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 18}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}
    encoder = CLIPTextModel(CLIPTextConfig(**text))
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(vae, encoder, _tokenizer(), unet, DDIMScheduler(), **options)


def _tokenizer() -> Any:
    """Return a tokenizer of single letters."""
    import tempfile

    from transformers import CLIPTokenizer

    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *LETTERS])}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=8)
