"""Find the tensors with a row per token (embeddings, output heads and their biases) by name and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.errors import CheckpointError
from weightspace.lora.tied_weights import is_head, is_token_embedding
from weightspace.merging.config.towers import named_tower, words

#: Further embeddings: one per layer or shared by all layers; and heads within layers.
_FURTHER = re.compile(r"(.*\.)?(embed_tokens_per_layer|embed_tokens|shared_head\.head)\.weight")

#: Biases over the vocabulary: of heads, of the modules around them, and the ``(1, V)`` biases of BART and Marian.
_BIAS = re.compile(r"(.*\.)?((lm_head|cls|predictions|generator_predictions)(\.decoder|\.predictions)?\.bias)")
_LOGITS_BIAS = re.compile(r"(.*\.)?final_logits_bias")

#: Words in a tensor's name that suggest a row per token, and words that rule it out.
_TOKEN_WORDS = frozenset(
    {"embed", "embedding", "embeddings", "head", "logits", "logit", "vocab", "vocabulary", "token", "tokens", "lm"}
)
_OTHER_WORDS = frozenset(
    {"pos", "position", "positions", "positional", "type", "types", "segment", "norm", "wpe", "time"}
)

#: Towers whose embeddings are not those of text tokens.
_APART = ("vision", "audio", "stem", "output")


def vocabulary_tensors(label: str, contents: CheckpointMetadata) -> dict[str, tuple[int, ...]]:
    """Return the tensors with a row per token and their shapes in the checkpoint.

    Args:
        label: name of the model in errors.
        contents: the model's metadata.

    Returns:
        Tensor name -> shape; empty if the model has no token embedding. Rows lie along the first dimension, except
        for ``(1, V)`` tensors, where they lie along the last.

    Raises:
        CheckpointError: embeddings have different numbers of rows, or it is unclear whether a tensor has a row per
            token.
    """
    shapes = {name: info.shape for name, info in contents.tensors.items()}
    embeddings = {name: shape[0] for name, shape in shapes.items() if _is_embedding(name) and len(shape) == 2}
    if not embeddings:
        return {}
    embeddings |= {name: shape[0] for name, shape in shapes.items() if _FURTHER.fullmatch(name) and len(shape) == 2}
    rows = max(embeddings.values())
    for name, own in embeddings.items():
        if own != rows:
            first = next(other for other, count in embeddings.items() if count == rows)
            raise CheckpointError(
                f"{label} has token embeddings with different numbers of rows ({first!r}: {rows:,}, {name!r}: "
                f"{own:,}); expected one vocabulary. Leave the tokenizer's source out of the recipe."
            )
    width = next(shapes[name][1] for name in embeddings)
    by_token = {name: shape for name, shape in shapes.items() if _has_row_per_token(name, shape, rows)}
    for name, shape in shapes.items():
        if name not in by_token and shape[:1] == (rows,) and rows != width and _may_have_row_per_token(name):
            raise CheckpointError(
                f"{name!r} of {label} has as many rows as its embedding ({rows:,}), but it is unclear whether they "
                "belong to tokens. Expected embeddings, heads and their biases under their usual names; otherwise "
                "leave the tokenizer's source out of the recipe."
            )
    return by_token


def row_length(shape: tuple[int, ...]) -> int:
    """Return the number of elements per token of a tensor of this shape."""
    length = 1
    for size in shape[1:]:
        length *= size
    return 1 if is_one_row(shape) else length


def is_one_row(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is ``(1, V)``, with tokens along the last dimension."""
    return len(shape) == 2 and shape[0] == 1


def with_rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Return the shape with its number of rows replaced."""
    return (1, rows) if is_one_row(shape) else (rows, *shape[1:])


def embedding_rows(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of rows of the embedding."""
    return next(shape[-1] if is_one_row(shape) else shape[0] for shape in tensors.values())


def _is_embedding(name: str) -> bool:
    """Return whether a tensor's name is that of a text token embedding."""
    return is_token_embedding(name) and named_tower(name.split(".")) not in _APART


def _has_row_per_token(name: str, shape: tuple[int, ...], rows: int) -> bool:
    """Return whether a tensor has a row per token."""
    if _LOGITS_BIAS.fullmatch(name):
        return shape in ((1, rows), (rows,))
    if shape[:1] != (rows,):
        return False
    if len(shape) == 1:
        head = f"{name.removesuffix('bias')}weight"
        return _BIAS.fullmatch(name) is not None or (name.endswith(".bias") and is_head(head))
    return len(shape) == 2 and (_is_embedding(name) or is_head(name) or _FURTHER.fullmatch(name) is not None)


def _may_have_row_per_token(name: str) -> bool:
    """Return whether the words of a tensor's name suggest a row per token."""
    found = {word for component in name.split(".") for word in words(component)}
    return bool(found & _TOKEN_WORDS) and not found & _OTHER_WORDS and named_tower(name.split(".")) not in _APART
