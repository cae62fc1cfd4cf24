"""A tokenizer's tokens with their ids, and how the tokens are spelled.

Tokens are read from ``tokenizer.json``, or from older files that list ids directly (``vocab.json``, ``vocab.txt``).
Other formats are converted by transformers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from weightspace.checkpoints.json_file import parse_json, read_json_object, read_optional_json_object
from weightspace.checkpoints.vocabulary import (
    Tokens,
    added_in_configuration,
    has_tokenizer,
    read_vocabulary,
    tokens_of_json,
)
from weightspace.errors import CheckpointError
from weightspace.merging.tokenizers.conversion import converted

#: Spelling of text by tokens: byte-level characters, ``▁`` for a space, ``##`` for word continuations, or plain text.
Writing: TypeAlias = Literal["bytes", "metaspace", "wordpiece", "plain"]

#: Maximum excess of the largest id over the number of tokens.
_GAP = 2**20

#: Fields of special tokens' entries that differ from the default.
_SPECIAL = {"normalized": False, "special": True}

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a tokenizer.

    Attributes:
        folder: the tokenizer's folder.
        ids: token -> id.
        added: added token -> its entry in ``added_tokens`` of ``tokenizer.json``; matched verbatim in texts.
        writing: how the ordinary tokens are spelled.
        converted: text of the ``tokenizer.json`` that transformers created, or None if no conversion was needed.
    """

    folder: Path
    ids: Tokens
    added: Mapping[str, Mapping[str, Any]]
    writing: Writing
    converted: str | None = None

    @cached_property
    def rows(self) -> int:
        """Number of embedding rows that the tokens need."""
        return 1 + max(self.ids.values(), default=-1)


def read_token_table(folder: Path, *, convert: bool = False) -> TokenTable | None:
    """Return the tokens of a folder, or None if it has no tokenizer.

    Args:
        folder: the tokenizer's folder.
        convert: convert to a ``tokenizer.json`` with transformers, even if the ids can be read without it.

    Raises:
        CheckpointError: a file is damaged.
        WeightspaceError: transformers is needed but is missing or cannot read the tokenizer.
    """
    if not has_tokenizer(folder):
        return None
    path, text = folder / _FILE, None
    if not path.is_file():
        vocabulary = read_vocabulary(folder)
        if vocabulary.is_whole and not convert:
            return _checked(_of_files(folder, vocabulary.rows))
        text = converted(folder)
    content = read_json_object(path) if text is None else parse_json(text, str(path))
    added = {str(entry["content"]): entry for entry in content.get("added_tokens") or [] if entry.get("content")}
    ids = tokens_of_json(content, path)
    for token, entry in sorted(_of_configuration(folder).items(), key=lambda pair: pair[1]["id"]):
        if ids.setdefault(token, entry["id"]) == entry["id"]:
            added.setdefault(token, entry)
    _check_added(content, added, ids, path)
    return _checked(TokenTable(folder, ids, added, _writing(content), text))


def is_readable(folder: Path) -> bool:
    """Return whether the token ids of a folder can be read without transformers.

    Raises:
        CheckpointError: a file is damaged.
    """
    return (folder / _FILE).is_file() or read_vocabulary(folder).is_whole


def added_entry(token: str, number: int, **further: Any) -> dict[str, Any]:
    """Return an entry of ``added_tokens`` with the defaults of the tokenizers package.

    Args:
        token: the token's text.
        number: the token's id.
        further: fields that differ from the default.
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": number, "content": token, **plain, **further}


def _of_files(folder: Path, ids: Tokens) -> TokenTable:
    """Return the tokens of a folder without ``tokenizer.json``, given their ids."""
    path = folder / "added_tokens.json"
    listed = read_optional_json_object(path)
    specials = {token: added_entry(token, ids[token], **_SPECIAL) for token in _specials(folder) if token in ids}
    added = {token: added_entry(token, number) for token, number in listed.items()} | specials
    added |= _of_configuration(folder)
    writing: Writing = "wordpiece" if (folder / "vocab.txt").is_file() else "bytes"
    if writing == "bytes" and any(token.endswith("</w>") for token in ids):
        writing = "plain"
    return TokenTable(folder, ids, added, writing)


def _check_added(content: Mapping[str, Any], added: Collection[str], ids: Tokens, path: Path) -> None:
    """Check that the ids of added tokens in their file are those that they get on loading.

    Libraries give an added token its id in the vocabulary or, if it isn't there, the next one after the vocabulary.

    Raises:
        CheckpointError: a token gets another id.
    """
    vocabulary = tokens_of_json({"model": content.get("model")}, path)
    following = itertools.count(len(vocabulary))
    for token in added:
        loaded = vocabulary[token] if token in vocabulary else next(following)
        if loaded != ids[token]:
            raise CheckpointError(
                f"{path}: the added token {token[:40]!r} has id {ids[token]}, but the tokenizers package loads it with "
                f"id {loaded}. Expected ids that follow those of the vocabulary, in order."
            )


def _specials(folder: Path) -> Iterator[str]:
    """Yield the special tokens named in a tokenizer's settings."""
    for name in (_CONFIG, "special_tokens_map.json"):
        content = read_optional_json_object(folder / name)
        for key, value in content.items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                yield value


def _of_configuration(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the added tokens listed in the tokenizer's configuration."""
    path = folder / _CONFIG
    if not path.is_file():
        return {}
    content = read_json_object(path)
    decoder = content.get("added_tokens_decoder") or {}
    numbers = added_in_configuration(content, path)
    return {
        str(entry["content"]): {**added_entry(str(entry["content"]), int(number)), **entry, "id": int(number)}
        for number, entry in decoder.items()
        if str(entry.get("content")) in numbers
    }


def _writing(content: Mapping[str, Any]) -> Writing:
    """Return how the tokens of a ``tokenizer.json`` are spelled."""
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    if model.get("type") == "WordPiece":
        return "wordpiece"
    if model.get("end_of_word_suffix"):
        return "plain"
    parts = json.dumps([content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    if '"ByteLevel"' in parts:
        return "bytes"
    return "metaspace" if "▁" in parts else "plain"


def _checked(table: TokenTable) -> TokenTable:
    """Return the tokens after checking that all ids are within bounds."""
    if table.ids and not (min(table.ids.values()) >= 0 and table.rows <= len(table.ids) + _GAP):
        token = max(table.ids, key=lambda token: abs(table.ids[token]))
        raise CheckpointError(
            f"{table.folder}: token {token[:40]!r} has id {table.ids[token]:,}, expected ids between 0 and about the "
            f"number of tokens ({len(table.ids):,}). Is the tokenizer damaged?"
        )
    return table
