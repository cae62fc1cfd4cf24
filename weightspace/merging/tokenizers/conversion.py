"""Tokenizers without a ``tokenizer.json`` (SentencePiece, tiktoken) converted by transformers, which is optional."""

from __future__ import annotations

import os
from pathlib import Path

from weightspace.errors import WeightspaceError


def converted(folder: Path) -> str:
    """Return the text of the ``tokenizer.json`` that transformers makes of a folder's tokenizer.

    Args:
        folder: of the tokenizer. Code that comes with it is not run.

    Raises:
        WeightspaceError: transformers is not installed, or cannot read the tokenizer, or reads it slowly only.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise WeightspaceError(
            f"{folder} has no tokenizer.json, and its tokens are read by transformers, which cannot be imported "
            f'({error}); pip install "weightspace[transformers]", or save the tokenizer with a tokenizer.json.'
        ) from None
    progress = os.environ.get("TRANSFORMERS_VERBOSITY")
    try:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its readers of formats raise
        reason = " ".join(str(error).split())[:200]
        raise WeightspaceError(
            f"{folder} has no tokenizer.json, and transformers cannot read its tokenizer ({type(error).__name__}: "
            f"{reason}). SentencePiece models need the packages sentencepiece and protobuf, tiktoken's need tiktoken; "
            "else save the tokenizer with a tokenizer.json."
        ) from None
    finally:
        os.environ.pop("TRANSFORMERS_VERBOSITY", None)
        if progress is not None:
            os.environ["TRANSFORMERS_VERBOSITY"] = progress
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise WeightspaceError(
            f"{folder} has a tokenizer ({type(tokenizer).__name__}) that transformers cannot turn into a "
            "tokenizer.json. Expected a fast tokenizer."
        )
    return backend.to_str()
