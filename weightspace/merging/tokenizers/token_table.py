"""The tokens of one model with their ids, and the way in which they are written.

They are read from ``tokenizer.json``, or from the files of older tokenizers whose ids are known without it
(``vocab.json``, ``vocab.txt``). All others are converted by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from weightspace.checkpoints.json_file import parse_json, read_json_object
from weightspace.checkpoints.vocabulary import (
    Tokens,
    added_in_configuration,
    has_tokenizer,
    read_vocabulary,
    tokens_of_json,
)
from weightspace.errors import CheckpointError
from weightspace.merging.tokenizers.conversion import converted

#: How tokens are written: byte by byte, with ``▁`` for a blank, with ``##`` within words, or as they are.
Writing: TypeAlias = Literal["bytes", "metaspace", "wordpiece", "plain"]

#: How far ids may lie above the number of tokens.
_GAP = 2**20

#: What entries of special tokens say beside what others say.
_SPECIAL = {"normalized": False, "special": True}

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a model.

    Attributes:
        folder: where they are from.
        ids: token -> id.
        added: those that are found in texts as they are -> their entry in ``added_tokens`` of ``tokenizer.json``.
        writing: how the others are written.
        converted: text of a ``tokenizer.json`` that transformers made; None: the files sufficed.
    """

    folder: Path
    ids: Tokens
    added: Mapping[str, Mapping[str, Any]]
    writing: Writing
    converted: str | None = None

    @cached_property
    def rows(self) -> int:
        """Rows that the tokens need."""
        return 1 + max(self.ids.values(), default=-1)


def read_token_table(folder: Path, *, convert: bool = False) -> TokenTable | None:
    """Return the tokens of a folder; None where it has no tokenizer.

    Args:
        folder: of the tokenizer.
        convert: have transformers make a ``tokenizer.json``, even where the files suffice to tell the ids.

    Raises:
        CheckpointError: a file is damaged.
        WeightspaceError: transformers is needed to read it, and is missing or cannot.
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
    for token, entry in _of_configuration(folder).items():
        if ids.setdefault(token, entry["id"]) == entry["id"]:
            added.setdefault(token, entry)
    return _checked(TokenTable(folder, ids, added, _writing(content), text))


def is_readable(folder: Path) -> bool:
    """Return whether the tokens of a folder can be read without transformers.

    Raises:
        CheckpointError: a file is damaged.
    """
    return (folder / _FILE).is_file() or read_vocabulary(folder).is_whole


def added_entry(token: str, number: int, **further: Any) -> dict[str, Any]:
    """Return an entry of ``added_tokens`` as tokenizers has it by default.

    Args:
        token: its text.
        number: its id.
        further: what is not as it is by default.
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": number, "content": token, **plain, **further}


def _of_files(folder: Path, ids: Tokens) -> TokenTable:
    """Return the tokens of files whose ids are known."""
    path = folder / "added_tokens.json"
    listed = read_json_object(path) if path.is_file() else {}
    specials = {token: added_entry(token, ids[token], **_SPECIAL) for token in _specials(folder) if token in ids}
    added = {token: added_entry(token, number) for token, number in listed.items()} | specials
    added |= _of_configuration(folder)
    writing: Writing = "wordpiece" if (folder / "vocab.txt").is_file() else "bytes"
    if writing == "bytes" and any(token.endswith("</w>") for token in ids):
        writing = "plain"
    return TokenTable(folder, ids, added, writing)


def _specials(folder: Path) -> Iterator[str]:
    """Yield the special tokens that a tokenizer's settings name."""
    for name in (_CONFIG, "special_tokens_map.json"):
        content = read_json_object(folder / name) if (folder / name).is_file() else {}
        for key, value in content.items():
            value = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(value, str):
                yield value


def _of_configuration(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the tokens that the tokenizer's configuration adds."""
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
    """Return how the tokens of a ``tokenizer.json`` are written."""
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
    """Return the tokens, all ids within bounds."""
    if table.ids and not (min(table.ids.values()) >= 0 and table.rows <= len(table.ids) + _GAP):
        token = max(table.ids, key=lambda token: abs(table.ids[token]))
        raise CheckpointError(
            f"{table.folder}: token {token[:40]!r} has id {table.ids[token]:,}, expected one up to about the number "
            f"of tokens ({len(table.ids):,}). Is the tokenizer damaged?"
        )
    return table
