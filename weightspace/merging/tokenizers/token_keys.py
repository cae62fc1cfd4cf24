"""Keys by which tokens of two tokenizers are the same: the tokens themselves, or the text that they stand for.

Tokenizers of one kind write tokens alike and are compared as they are. Between kinds, ``Ġthe`` (bytes) and ``▁the``
(metaspace) are the same text, as is ``<0x0A>`` and ``Ċ``; ``the`` of WordPiece begins a word, ``##the`` does not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import TypeAlias, cast

from weightspace.merging.tokenizers.token_table import TokenTable, Writing

#: A token as it is written, or the bytes that it stands for.
Key: TypeAlias = str | bytes

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def are_alike(tables: Collection[TokenTable]) -> bool:
    """Return whether all write their tokens in the same way."""
    return len({table.writing for table in tables}) < 2


def ids_by_key(table: TokenTable, *, alike: bool) -> Mapping[Key, int]:
    """Return the ids of a tokenizer's tokens by their keys.

    Args:
        table: the tokens.
        alike: all tokenizers that are compared write tokens in the same way.
    """
    if alike:
        return cast("Mapping[Key, int]", table.ids)
    found: dict[Key, int] = {}
    for token in sorted(table.ids, key=lambda token: _BYTE.fullmatch(token) is None):  # a piece counts before a byte
        found[key(table, token, alike=False)] = table.ids[token]
    return found


def key(table: TokenTable, token: str, *, alike: bool) -> Key:
    """Return the key of one token; see ``ids_by_key``."""
    if alike or token in table.added:
        return token
    return text_of(token, table.writing)


def text_of(token: str, writing: Writing) -> bytes:
    """Return the bytes that a token stands for.

    Example:
        >>> text_of("Ġthe", "bytes"), text_of("▁the", "metaspace"), text_of("the", "wordpiece")
        (b' the', b' the', b' the')
    """
    if writing == "bytes" and all(character in _bytes() for character in token):
        return bytes(_bytes()[character] for character in token)
    if writing == "metaspace":
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8", "surrogatepass")
    if writing == "wordpiece":
        return (token[2:] if token.startswith("##") else f" {token}").encode("utf-8", "surrogatepass")
    return token.encode("utf-8", "surrogatepass")


def written(text: bytes, writing: Writing) -> str | None:
    """Return the token that stands for bytes, None where it cannot be written so.

    Example:
        >>> written(b" the", "bytes"), written(b" the", "metaspace"), written(b"the", "wordpiece")
        ('Ġthe', '▁the', '##the')
    """
    if writing == "bytes":
        return "".join(_characters()[byte] for byte in text)
    try:
        plain = text.decode()
    except UnicodeDecodeError:
        return None
    if writing == "metaspace":
        return plain.replace(" ", "▁")
    if writing == "wordpiece":
        word = plain[1:] if plain.startswith(" ") else f"##{plain}"
        return word if word.removeprefix("##") and not word.count(" ") else None
    return plain


@cache
def _bytes() -> Mapping[str, int]:
    """Return the byte that each character stands for in byte-level vocabularies.

    Source:
        Radford et al. 2019, https://github.com/openai/gpt-2/blob/master/src/encoder.py: printable bytes are their own
        characters, the others follow from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


@cache
def _characters() -> Mapping[int, str]:
    return {byte: character for character, byte in _bytes().items()}
