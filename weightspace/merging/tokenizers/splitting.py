"""Texts split into tokens by a model's own tokenizer. The door to tokenizers for merges."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.tokenizers.conversion import converted
from weightspace.merging.tokenizers.token_table import TokenTable


def split(table: TokenTable, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of the tokens of texts, special ones not added.

    Raises:
        WeightspaceError: tokenizers isn't installed, or cannot read the tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except Exception as error:  # a package can be there and broken
        raise WeightspaceError(
            f'tokenizers cannot be imported ({type(error).__name__}: {error}); pip install "weightspace[transformers]"'
        ) from error
    path = table.folder / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = Tokenizer.from_str(table.converted or converted(table.folder))
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    except WeightspaceError:
        raise
    except Exception as error:  # its errors have no class of their own
        raise WeightspaceError(f"{path} cannot be read by tokenizers ({error}). Copy it again.") from error
