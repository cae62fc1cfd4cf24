"""The ``tokenizer`` of a recipe: the source of the output's tokenizer, single tokens, and padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.merging.recipe.document import Document, join, kind
from weightspace.merging.recipe.model_reference import model_reference
from weightspace.merging.recipe.types import TokenizerKeys, TokenSource

#: The largest number that rows are padded to a multiple of.
_LARGEST = 2**20

#: The largest id of a token.
_LARGEST_ID = 2**31


def tokenizer_keys(document: Document, top: Mapping[str, Any]) -> TokenizerKeys:
    """Return what a recipe says of the tokenizer.

    Args:
        document: the recipe.
        top: its outermost mapping.

    Raises:
        WeightspaceError: something is not understood; the message names the key.
    """
    source = model_reference(document, top.get("tokenizer_source"), "tokenizer_source")
    if top.get("tokenizer") is None:
        return TokenizerKeys(source)
    content = document.mapping(top["tokenizer"], "tokenizer")
    document.known(content, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
    if source is not None:
        raise document.error("tokenizer", "and tokenizer_source both say where the tokenizer comes from")
    source = model_reference(document, content.get("source"), "tokenizer.source") or "union"
    path = "tokenizer.tokens"
    listed = document.mapping(content.get("tokens") or {}, path)
    tokens = {token: _token(document, value, f"{path}[{token!r}]") for token, value in listed.items()}
    multiple = content.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or not 0 <= multiple <= _LARGEST):
        raise document.error("tokenizer.pad_to_multiple_of", f"is a whole number, found {kind(multiple)}")
    return TokenizerKeys(source, tokens, multiple or None)


def _token(document: Document, value: Any, path: str) -> TokenSource:
    """Return what becomes of the row of one token."""
    content = document.mapping(value or {}, path)
    document.known(content, ("source", "force"), path)
    force = content.get("force", False)
    if not isinstance(force, bool):
        raise document.error(join(path, "force"), f"is true or false, found {kind(force)}")
    source = content.get("source")
    path = join(path, "source")
    if source is None:
        return TokenSource(force=force)
    if source == "zero":
        return TokenSource(zero=True, force=force)
    if not isinstance(source, dict) or "kind" not in source:
        return TokenSource(model_reference(document, source, path), force=force)
    if source["kind"] == "zero":
        document.known(source, ("kind",), path)
        return TokenSource(zero=True, force=force)
    if source["kind"] != "model_token":
        raise document.error(join(path, "kind"), f"is zero or model_token, found {kind(source['kind'])}")
    return _model_token(document, source, path, force=force)


def _model_token(document: Document, source: Mapping[str, Any], path: str, *, force: bool) -> TokenSource:
    """Return the row of a model's own token."""
    document.known(source, ("kind", "model", "token", "token_id"), path)
    model = model_reference(document, source.get("model"), join(path, "model"))
    if model is None:
        raise document.error(join(path, "model"), "is missing: expected the path of a checkpoint")
    token, number = document.text(source, "token", path), source.get("token_id")
    if (token is None) == (number is None):
        raise document.error(path, "names a token or a token_id, one of the two")
    if number is not None and (type(number) is not int or not 0 <= number < _LARGEST_ID):
        raise document.error(join(path, "token_id"), f"is the number of a row, found {kind(number)}")
    return TokenSource(model, token, number, force=force)
