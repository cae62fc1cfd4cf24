"""Language models whose head is their embedding: the head has no tensor of its own in their files."""

from __future__ import annotations

import json

from weightspace.checkpoints.contents import Contents

#: What heads are called, and what the embeddings that they can share.
_HEADS = ("lm_head", "embed_out", "output")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared", "wpe")


def tied_embedding(contents: Contents, head: str) -> str | None:
    """Return the embedding that a model uses where others have the tensor ``head``; None if it isn't a head.

    Args:
        contents: the model, without a tensor of that name.
        head: the name, such as ``lm_head.weight``.
    """
    if not is_head(head):
        return None
    found = [name for name in contents.tensors if _module(name) in _EMBEDDINGS and name.endswith(".weight")]
    return found[0] if len(found) == 1 else None


def is_tied_by_configuration(contents: Contents, embedding: str) -> bool:
    """Return whether a model's head is this embedding, has no tensor of its own, and its configuration says so."""
    if _module(embedding) not in _EMBEDDINGS or any(map(is_head, contents.tensors)):
        return False
    try:
        config = json.loads((contents.path / "config.json").read_bytes())
    except (OSError, ValueError):  # a single file, or one that is refused elsewhere
        return False
    if not isinstance(config, dict):
        return False
    heads = [str(name) for name in config.get("architectures") or []]
    usual = any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in heads)
    return bool(config.get("tie_word_embeddings", usual))


def is_head(name: str) -> bool:
    """Return whether a tensor is called as heads of language models are."""
    return _module(name) in _HEADS


def is_embedding(name: str) -> bool:
    """Return whether a tensor outside the layers stands before them, by its name: ``model.embed_tokens.weight``."""
    return any(part in _EMBEDDINGS or "embed" in part for part in name.split("."))


def _module(name: str) -> str:
    """Return the last module of a tensor's name."""
    return name.rpartition(".")[0].rpartition(".")[2]
