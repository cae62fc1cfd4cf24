"""Text encoders with BERT's architecture, split in two: frozen lower layers, and upper ones to train.

Reads a Hugging Face folder (``config.json``, ``tokenizer.json``, the weights) without transformers. Texts pass through
the frozen part once; the trained network starts from its outputs, ``(n, length, width)``, in which a position of zeros
is padding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict, load_checkpoint
from weightspace.checkpoints.json_file import read_json_object
from weightspace.errors import WeightspaceError
from weightspace.tracing import runs_eagerly

#: Number of texts in a batch of the frozen layers.
_TEXTS_AT_ONCE = 64
#: Name in a layer of this module -> names in BERT's, in the order in which they are stacked.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "self_attn.in_proj_": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
    "self_attn.out_proj.": ("attention.output.dense.",),
    "norm1.": ("attention.output.LayerNorm.",),
    "linear1.": ("intermediate.dense.",),
    "linear2.": ("output.dense.",),
    "norm2.": ("output.LayerNorm.",),
}


class TextClassifier(nn.Module):
    """Logits of texts from the outputs of the frozen layers: upper layers, mean over positions, linear head.

    Args:
        layers: layers of the encoder, from the first trained one.
        width: features per position.
        classes: number of logits. The head is initialised with zeros, so that fine-tunes of all seeds share it.
    """

    def __init__(self, layers: Sequence[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` for outputs of the frozen layers, ``(n, length, width)``."""
        seen = hidden.ne(0).any(dim=-1)
        if runs_eagerly(seen):  # columns that are all padding only cost time
            longest = int(seen.sum(dim=1).max())
            hidden, seen = hidden[:, :longest], seen[:, :longest]
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~seen)
        weights = seen.to(hidden).unsqueeze(-1)
        return self.head((hidden * weights).sum(dim=1) / weights.sum(dim=1))


def text_classifier(folder: Path, classes: int, *, trained: int) -> TextClassifier:
    """Return a new classifier on the top ``trained`` layers of an encoder, always with the same weights.

    Raises:
        WeightspaceError: the folder lacks a file, has another architecture, or too few layers.
    """
    config, layers = _layers(folder)
    frozen = _frozen(folder, trained)
    return TextClassifier(copy.deepcopy(layers[frozen:]), config["hidden_size"], classes)


@torch.no_grad()
def frozen_features(folder: Path, texts: Sequence[str], *, trained: int, length: int) -> Tensor:
    """Return the outputs of the layers below the top ``trained`` ones for texts.

    Args:
        folder: folder of the encoder.
        texts: any number of texts.
        trained: number of top layers to leave out.
        length: number of positions; longer texts are truncated.

    Returns:
        float32 ``(n, length, width)``, with zeros after the end of a text.

    Raises:
        WeightspaceError: the folder lacks a file, has another architecture, or too few layers; a missing package.
    """
    config, layers = _layers(folder)
    frozen = _frozen(folder, trained)
    tokens = tokens_of(folder, texts, length)
    features = torch.zeros(len(texts), length, config["hidden_size"])
    order = tokens.ne(config["pad_token_id"]).sum(dim=1).argsort()
    for chosen in order.split(_TEXTS_AT_ONCE):
        ids = tokens[chosen]
        seen = ids.ne(config["pad_token_id"])
        longest = int(seen.sum(dim=1).max())
        ids, seen = ids[:, :longest], seen[:, :longest]
        hidden = _embedded(folder, ids)
        for layer in layers[:frozen]:
            hidden = layer(hidden, src_key_padding_mask=~seen)
        features[chosen, :longest] = hidden * seen.unsqueeze(-1)
    return features


def tokens_of(folder: Path, texts: Sequence[str], length: int) -> Tensor:
    """Return the tokens of texts, int64 ``(n, length)``, truncated and padded to that length.

    Raises:
        WeightspaceError: tokenizers isn't installed, or the folder has no tokenizer.json.
    """
    try:
        from tokenizers import Tokenizer
    except Exception as error:  # an installed package can be broken
        raise WeightspaceError(
            f'tokenizers cannot be imported ({type(error).__name__}: {error}); pip install "weightspace[transformers]"'
        ) from error
    file = _file(folder, "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=_config(folder)["pad_token_id"])
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(texts))]).view(-1, length)


def _frozen(folder: Path, trained: int) -> int:
    """Return the number of frozen layers."""
    count = _config(folder)["num_hidden_layers"]
    if not 0 < trained <= count:
        raise WeightspaceError(f"Found {trained} layers to train; expected 1 to {count}, the number in {folder}.")
    return count - trained


@lru_cache(maxsize=2)
def _config(folder: Path) -> dict[str, Any]:
    config = read_json_object(_file(folder, "config.json"))
    if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
        raise WeightspaceError(
            f"{folder} has a model of type {config.get('model_type')!r} with {config.get('hidden_act', 'gelu')!r}; "
            "expected BERT's architecture with 'gelu'."
        )
    return {"pad_token_id": 0, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, **config}


@lru_cache(maxsize=2)
def _weights(folder: Path) -> StateDict:
    """Return the weights of an encoder, without the prefix from a larger model."""
    found = load_checkpoint(folder)
    return {name.removeprefix("bert."): tensor.float() for name, tensor in found.items()}


@lru_cache(maxsize=2)
def _layers(folder: Path) -> tuple[dict[str, Any], list[nn.Module]]:
    """Return the configuration of an encoder and all its layers, in evaluation mode."""
    config, weights = _config(folder), _weights(folder)
    layers = []
    for number in range(config["num_hidden_layers"]):
        with torch.random.fork_rng(devices=[]):
            layer = nn.TransformerEncoderLayer(
                config["hidden_size"],
                config["num_attention_heads"],
                config["intermediate_size"],
                config["hidden_dropout_prob"],
                "gelu",
                config["layer_norm_eps"],
                batch_first=True,
            )
        there = f"encoder.layer.{number}."
        layer.load_state_dict(
            {
                name + part: torch.cat([weights[there + source + part] for source in sources])
                for name, sources in _NAMES.items()
                for part in ("weight", "bias")
            }
        )
        layers.append(layer.eval())
    return config, layers


def _embedded(folder: Path, ids: Tensor) -> Tensor:
    """Return the normalised embeddings of tokens ``(n, length)``: word, position and first segment type."""
    weights, prefix = _weights(folder), "embeddings."
    words = weights[f"{prefix}word_embeddings.weight"][ids]
    places = weights[f"{prefix}position_embeddings.weight"][: ids.shape[1]]
    kind = weights[f"{prefix}token_type_embeddings.weight"][0]
    norm = (weights[f"{prefix}LayerNorm.weight"], weights[f"{prefix}LayerNorm.bias"])
    return nn.functional.layer_norm(words + places + kind, kind.shape, *norm, _config(folder)["layer_norm_eps"])


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise WeightspaceError(
            f"{folder} has no {name}; expected a Hugging Face folder: config.json, tokenizer.json, model.safetensors."
        )
    return folder / name
