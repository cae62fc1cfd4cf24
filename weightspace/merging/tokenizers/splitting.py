"""Split texts into token ids with a model's own tokenizer. The only module that imports tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.tokenizers.conversion import converted
from weightspace.merging.tokenizers.token_table import TokenTable


def split(table: TokenTable, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens.

    Raises:
        WeightspaceError: the tokenizers package isn't installed, or cannot read the tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except Exception as error:  # a package can be installed but broken
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
    except Exception as error:  # tokenizers raises plain Exception
        raise WeightspaceError(
            f"The tokenizers package cannot read {path} ({error}). Is the file damaged? Copy it again."
        ) from error
