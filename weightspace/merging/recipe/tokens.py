"""Read a recipe's ``tokenizer`` section: the source of the output's tokenizer, rows of single tokens, and padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.merging.recipe.document import Document, join, kind
from weightspace.merging.recipe.model_reference import model_reference
from weightspace.merging.recipe.types import TokenizerKeys, TokenSource

#: Largest ``pad_to_multiple_of``.
_LARGEST = 2**20

#: Upper bound of token ids.
_LARGEST_ID = 2**31


def tokenizer_keys(document: Document, top: Mapping[str, Any]) -> TokenizerKeys:
    """Return a recipe's settings for the tokenizer.

    Args:
        document: the recipe.
        top: the recipe's top-level mapping.

    Raises:
        WeightspaceError: a setting is invalid; the message names the key.
    """
    source = model_reference(document, top.get("tokenizer_source"), "tokenizer_source")
    if top.get("tokenizer") is None:
        return TokenizerKeys(source)
    if isinstance(top["tokenizer"], str):
        raise document.error("tokenizer", f"is {kind(top['tokenizer'])}; write {{source: {top['tokenizer'][:60]}}}")
    content = document.mapping(top["tokenizer"], "tokenizer")
    document.known(content, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
    if source is not None:
        raise document.error("tokenizer", "and tokenizer_source both set the tokenizer's source; remove one of them")
    source = model_reference(document, content.get("source"), "tokenizer.source") or "union"
    path = "tokenizer.tokens"
    listed = document.mapping(content.get("tokens") or {}, path)
    tokens = {token: _token(document, value, f"{path}[{token!r}]") for token, value in listed.items()}
    multiple = content.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or not 0 <= multiple <= _LARGEST):
        raise document.error(
            "tokenizer.pad_to_multiple_of", f"must be an integer from 0 to {_LARGEST}, found {kind(multiple)}"
        )
    return TokenizerKeys(source, tokens, multiple or None)


def _token(document: Document, value: Any, path: str) -> TokenSource:
    """Return where the row of a token comes from."""
    content = document.mapping(value or {}, path)
    document.known(content, ("source", "force"), path)
    force = content.get("force", False)
    if not isinstance(force, bool):
        raise document.error(join(path, "force"), f"must be true or false, found {kind(force)}")
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
        raise document.error(join(path, "kind"), f"must be zero or model_token, found {kind(source['kind'])}")
    return _model_token(document, source, path, force=force)


def _model_token(document: Document, source: Mapping[str, Any], path: str, *, force: bool) -> TokenSource:
    """Return the row of a given token of a model."""
    document.known(source, ("kind", "model", "token", "token_id"), path)
    model = model_reference(document, source.get("model"), join(path, "model"))
    if model is None:
        raise document.error(join(path, "model"), "is missing: expected the path of a checkpoint")
    token, number = document.text(source, "token", path), source.get("token_id")
    if (token is None) == (number is None):
        raise document.error(path, "must have either token or token_id")
    if number is not None and (type(number) is not int or not 0 <= number < _LARGEST_ID):
        raise document.error(join(path, "token_id"), f"must be the index of a row, found {kind(number)}")
    return TokenSource(model, token, number, force=force)
