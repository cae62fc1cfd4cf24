"""Tiny language models in folders, with tokenizers of every kind whose vocabularies can be permuted and extended."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

import weightspace as ws

TEXTS = (
    *("the quick brown fox jumps over the lazy dog", "hello world, hello there", "singing a song in the rain"),
    *("permuted vocabularies are moved by token", "a model merged with itself", "été naïve 12345"),
)
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")

SIZES: dict[str, Any] = {
    **{"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"max_position_embeddings": 64, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


def tokenizer(kind: str = "bytes", size: int = 340, texts: Sequence[str] = TEXTS) -> dict[str, Any]:
    """Return the content of ``tokenizer.json`` of a small tokenizer, trained on some texts."""
    common = {"vocab_size": size, "special_tokens": list(SPECIALS), "show_progress": False}
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**common, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(**{**common, "vocab_size": 90})
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**common, unk_token="<unk>")
    made.train_from_iterator(texts, trainer)
    return json.loads(made.to_str())


def ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> id of a ``tokenizer.json``."""
    vocab = content["model"]["vocab"]
    listed = {token: number for number, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return listed | {entry["content"]: entry["id"] for entry in content["added_tokens"]}


def permuted(content: Mapping[str, Any], seed: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Return a tokenizer with the ids of all ordinary tokens permuted, and the old id of each new one."""
    made = json.loads(json.dumps(content))
    fixed = {entry["id"] for entry in made["added_tokens"]}
    count = len(ids(made))
    free = [number for number in range(count) if number not in fixed]
    shuffled = random.Random(seed).sample(free, len(free))
    old = list(range(count))
    for new, own in zip(free, shuffled, strict=True):
        old[new] = own
    vocab = made["model"]["vocab"]
    if isinstance(vocab, list):
        made["model"]["vocab"] = [vocab[own] for own in old]
    else:
        back = {own: new for new, own in enumerate(old)}
        made["model"]["vocab"] = {token: back[number] for token, number in vocab.items()}
    return made, old


def with_tokens(content: Mapping[str, Any], *tokens: str, special: bool = True) -> dict[str, Any]:
    """Return a tokenizer with more added tokens."""
    made = json.loads(json.dumps(content))
    for token in tokens:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
        entry = {"id": max(ids(made).values()) + 1, "content": token, **plain, "special": special}
        made["added_tokens"].append(entry)
    return made


def llama(rows: int, *, tied: bool = False, seed: int = 0, **further: Any) -> nn.Module:
    """Return a tiny random Llama."""
    torch.manual_seed(seed)
    options = {**SIZES, "vocab_size": rows, "tie_word_embeddings": tied, **further}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()


def with_moved_rows(model: nn.Module, old: Sequence[int]) -> nn.Module:
    """Return a copy of a model in which row ``i`` of embedding and head is row ``old[i]``."""
    copy = type(model)(model.config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][list(old)]
    copy.load_state_dict(state)
    return copy.eval()


def save(model: nn.Module, content: Mapping[str, Any] | None, folder: Path, **config: Any) -> Path:
    """Write a folder as transformers does, with a tokenizer."""
    model.save_pretrained(folder)
    if content is not None:
        write_tokenizer(content, folder, **config)
    return folder


def write_tokenizer(content: Mapping[str, Any], folder: Path, **config: Any) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def rows_of(folder: Path, name: str = "model.embed_tokens.weight") -> dict[str, torch.Tensor]:
    """Return the row of each token of a folder's tokenizer."""
    tensor = ws.load_checkpoint(folder)[name]
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {token: tensor[number] for token, number in ids(content).items() if number < len(tensor)}


def recipe(folder: Path, method: str, models_: Sequence[Path], keys: str, base: Path | None = None) -> Path:
    """Write a recipe."""
    listed = "".join(f"- {{model: {model}, parameters: {{weight: 0.5}}}}\n" for model in models_)
    origin = f"base_model: {base}\n" if base is not None else ""
    path = folder / "recipe.yml"
    path.write_text(f"merge_method: {method}\n{origin}models:\n{listed}{keys}\n")
    return path
