"""The tensors of a model with a row per token: embeddings, heads and the biases of heads, by their names and sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.errors import CheckpointError
from weightspace.lora.tied_weights import is_head, is_token_embedding
from weightspace.merging.config.towers import named_tower, words

#: Embeddings that language models have in their layers, or once for all of them, and heads in layers.
_FURTHER = re.compile(r"(.*\.)?(embed_tokens_per_layer|embed_tokens|shared_head\.head)\.weight")

#: Biases over tokens: of heads, of their parents, and of BART and Marian, where they are rows of one column less.
_BIAS = re.compile(r"(.*\.)?((lm_head|cls|predictions|generator_predictions)(\.decoder|\.predictions)?\.bias)")
_LOGITS_BIAS = re.compile(r"(.*\.)?final_logits_bias")

#: Words in names of tensors that may have a row per token, and those that tell that one has none.
_TELLING = frozenset(
    {"embed", "embedding", "embeddings", "head", "logits", "logit", "vocab", "vocabulary", "token", "tokens", "lm"}
)
_OTHERS = frozenset({"pos", "position", "positions", "positional", "type", "types", "segment", "norm", "wpe", "time"})

#: Towers whose embeddings are of something else than text.
_APART = ("vision", "audio", "stem", "output")


def vocabulary_tensors(label: str, contents: CheckpointMetadata) -> dict[str, tuple[int, ...]]:
    """Return the tensors with a row per token, with their shapes in the files.

    Args:
        label: what errors call the model.
        contents: of its files.

    Returns:
        Shapes by name. The rows lie along the first dim, of ``(1, V)`` along the last; empty: the model has no
        embedding of tokens.

    Raises:
        CheckpointError: embeddings have different numbers of rows, or a tensor may have a row per token or not.
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
                f"{label} has embeddings of tokens with different numbers of rows, {first!r} with {rows:,} and "
                f"{name!r} with {own:,}: expected one vocabulary. Leave the tokenizer's source out of the recipe."
            )
    width = next(shapes[name][1] for name in embeddings)
    found = {name: shape for name, shape in shapes.items() if _has_row_per_token(name, shape, rows)}
    for name, shape in shapes.items():
        if name not in found and shape[:1] == (rows,) and rows != width and _may_be(name):
            raise CheckpointError(
                f"{name!r} of {label} has as many rows as its embedding ({rows:,}), but is not known to have one per "
                "token. Expected embeddings, heads and their biases by their usual names; leave the tokenizer's source "
                "out of the recipe."
            )
    return found


def row_length(shape: tuple[int, ...]) -> int:
    """Return the elements of a row of a tensor of this shape in the files."""
    length = 1
    for size in shape[1:]:
        length *= size
    return 1 if is_one_row(shape) else length


def is_one_row(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is ``(1, V)``, with the tokens along its last dim."""
    return len(shape) == 2 and shape[0] == 1


def with_rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Return the shape of a tensor with another number of rows."""
    return (1, rows) if is_one_row(shape) else (rows, *shape[1:])


def embedding_rows(tensors: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of rows of the embedding."""
    return next(shape[-1] if is_one_row(shape) else shape[0] for shape in tensors.values())


def _is_embedding(name: str) -> bool:
    """Return whether a tensor is an embedding of the text's tokens by its name."""
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


def _may_be(name: str) -> bool:
    """Return whether the words of a name tell of tokens."""
    told = {word for component in name.split(".") for word in words(component)}
    return bool(told & _TELLING) and not told & _OTHERS and named_tower(name.split(".")) not in _APART
