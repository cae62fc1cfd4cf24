"""Tokenizers without a ``tokenizer.json`` (SentencePiece, tiktoken) converted by transformers, which is optional."""

from __future__ import annotations

from pathlib import Path

from weightspace.errors import WeightspaceError


def converted(folder: Path) -> str:
    """Return the text of a ``tokenizer.json``, converted by transformers from a folder's tokenizer.

    Args:
        folder: of the tokenizer. Code that comes with it is not run.

    Raises:
        WeightspaceError: transformers is not installed or cannot read the tokenizer, or has no fast one for it.
    """
    from weightspace.pretrained import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except WeightspaceError as error:
        raise WeightspaceError(
            f"{folder} has no tokenizer.json, and transformers cannot read its tokenizer: {error} SentencePiece models "
            "need the packages sentencepiece and protobuf, tiktoken's need tiktoken; else save the tokenizer with a "
            "tokenizer.json."
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise WeightspaceError(
            f"{folder} has a tokenizer ({type(tokenizer).__name__}) that transformers cannot turn into a "
            "tokenizer.json. Expected a fast tokenizer."
        )
    return backend.to_str()
