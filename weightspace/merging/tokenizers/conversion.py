"""Convert tokenizers without a ``tokenizer.json`` (SentencePiece, tiktoken) using the optional transformers package."""

from __future__ import annotations

from pathlib import Path

from weightspace.errors import WeightspaceError


def converted(folder: Path) -> str:
    """Return the text of a ``tokenizer.json`` that transformers converts from a folder's tokenizer.

    Args:
        folder: the tokenizer's folder. Code in it is never run.

    Raises:
        WeightspaceError: transformers is not installed, cannot read the tokenizer, or has no fast version of it.
    """
    from weightspace.pretrained import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except WeightspaceError as error:
        raise WeightspaceError(
            f"{folder} has no tokenizer.json, and transformers cannot read its tokenizer: {error} SentencePiece "
            "models need the packages sentencepiece and protobuf, tiktoken models need tiktoken; otherwise save the "
            "tokenizer as a tokenizer.json."
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise WeightspaceError(
            f"transformers cannot convert the tokenizer of {folder} ({type(tokenizer).__name__}) to a "
            "tokenizer.json. Expected a fast tokenizer."
        )
    return backend.to_str()
