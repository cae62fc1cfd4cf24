"""Keys that identify a token across tokenizers: the token itself, or the bytes that it encodes.

Tokenizers of the same kind spell tokens alike, so their tokens are compared directly. Between kinds, only tokens that
are added tokens of one of them are; of the others, ``Ġthe`` (byte-level) and ``▁the`` (metaspace) encode the same text,
as do ``<0x0A>`` and ``Ċ``; in WordPiece, ``the`` starts a word and ``##the`` continues one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import TypeAlias, cast

from weightspace.merging.tokenizers.token_table import TokenTable, Writing

#: A token as spelled in the vocabulary, or the bytes that it encodes.
Key: TypeAlias = str | bytes

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def verbatim_tokens(tables: Collection[TokenTable]) -> frozenset[str] | None:
    """Return the tokens of these tokenizers that are compared as they are spelled, or None if all are."""
    if len({table.writing for table in tables}) < 2:
        return None
    return frozenset().union(*(table.added for table in tables))


def ids_by_key(table: TokenTable, verbatim: frozenset[str] | None) -> Mapping[Key, int]:
    """Return key -> id for a tokenizer's tokens.

    Args:
        table: the tokens.
        verbatim: from ``verbatim_tokens``.
    """
    if verbatim is None:
        return cast("Mapping[Key, int]", table.ids)
    ids: dict[Key, int] = {}
    for token in sorted(table.ids, key=lambda token: _BYTE.fullmatch(token) is None):  # pieces override byte tokens
        ids[key(table, token, verbatim)] = table.ids[token]
    return ids


def key(table: TokenTable, token: str, verbatim: frozenset[str] | None) -> Key:
    """Return the key of a token; see ``ids_by_key``."""
    return token if verbatim is None or token in verbatim else text_of(token, table.writing)


def text_of(token: str, writing: Writing) -> bytes:
    """Return the bytes that a token encodes.

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
    """Return the token that encodes the given bytes, or None if the vocabulary's spelling cannot express them.

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
    """Return character -> byte for byte-level vocabularies.

    Source:
        Radford et al. 2019, https://github.com/openai/gpt-2/blob/master/src/encoder.py: printable bytes map to
        themselves, all others to code points from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


@cache
def _characters() -> Mapping[int, str]:
    return {byte: character for character, byte in _bytes().items()}
