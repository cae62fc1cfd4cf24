"""The output's vocabulary: the tokens of one tokenizer, followed by those that only other tokenizers have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from weightspace.checkpoints.vocabulary import Tokens
from weightspace.merging.tokenizers.token_keys import Key, ids_by_key, key, written
from weightspace.merging.tokenizers.token_table import TokenTable, added_entry


@dataclass(frozen=True)
class NewTokens:
    """Tokens to append to a tokenizer's files.

    Attributes:
        ordinary: token -> id, in order of id; entries of the vocabulary only.
        added: entries of all added tokens, those of the tokenizer included, with ids; matched verbatim in texts. Some
            may be ordinary tokens of the tokenizer.
        count: number of tokens that the tokenizer lacks.
        converted: text of a converted ``tokenizer.json``, or None if the folder has one.
    """

    ordinary: Mapping[str, int] = field(default_factory=dict)
    added: tuple[Mapping[str, Any], ...] = ()
    count: int = 0
    converted: str | None = None


@dataclass(frozen=True)
class OutputVocabulary:
    """The tokens of the output.

    Attributes:
        source: the tokenizer that it extends.
        ids: token -> id.
        keys: key of each token, indexed by id; None for unused ids.
        new: tokens to append to the source, or None.
        unwritten: number of tokens left out because this kind of tokenizer cannot spell them.
    """

    source: TokenTable
    ids: Tokens
    keys: Sequence[Key | None]
    new: NewTokens | None
    unwritten: int


def output_vocabulary(
    source: TokenTable,
    others: Sequence[tuple[TokenTable, int]],
    extra: Collection[str],
    verbatim: frozenset[str] | None,
) -> OutputVocabulary:
    """Return the output's vocabulary.

    Args:
        source: the tokenizer that the output extends.
        others: tokenizers whose tokens are appended, each with the number of embedding rows of its model.
        extra: further tokens to append.
        verbatim: from ``verbatim_tokens`` of all tokenizers of the merge.
    """
    union = _Union(source, verbatim)
    for table, rows in others:
        union.add_ordinary(table, rows)
    for table, rows in others:
        for token in sorted(table.added, key=lambda token, table=table: table.ids.get(token, 0)):
            if table.ids.get(token, rows) < rows:
                union.add_added(token, table.added[token])
    for token in extra:
        if token not in union.ids:
            union.add_added(token, added_entry(token, 0, normalized=False))
    count = 1 + max(union.known.values(), default=-1)
    keys: list[Key | None] = [None] * count
    for token_key, number in union.known.items():
        keys[number] = token_key
    changed = bool(union.ordinary or union.added)
    lacking = len(union.ids) - len(source.ids)
    added = [{**entry, "id": source.ids[token]} for token, entry in source.added.items()]
    added += union.added.values()
    new = NewTokens(union.ordinary, tuple(added), lacking, source.converted) if changed else None
    return OutputVocabulary(source, union.ids, keys, new, union.unwritten)


class _Union:
    """A growing vocabulary: a tokenizer's tokens, and those appended to them."""

    def __init__(self, source: TokenTable, verbatim: frozenset[str] | None) -> None:
        self.source = source
        self.verbatim = verbatim
        self.ids = dict(source.ids)
        self.known = dict(ids_by_key(source, verbatim))
        self.next = source.rows
        self.ordinary: Tokens = {}
        self.added: dict[str, dict[str, Any]] = {}
        self.unwritten = 0

    def add_ordinary(self, table: TokenTable, rows: int) -> None:
        """Append another tokenizer's ordinary tokens."""
        for token in _by_id(table, rows, self.known.keys() if self.verbatim is None else frozenset()):
            token_key = key(table, token, self.verbatim)
            if token in table.added or token_key in self.known:
                continue
            text = token if isinstance(token_key, str) else written(token_key, self.source.writing)
            if text is None or text in self.ids:
                self.unwritten += 1
                continue
            self.ordinary[text] = self._append(text, token_key)

    def add_added(self, token: str, entry: Mapping[str, Any]) -> None:
        """Append an added token; an ordinary token of the tokenizer with the same text becomes an added token."""
        if token in self.source.added or token in self.added:
            return
        number = self.ids[token] if token in self.ids else self._append(token, token)
        self.added[token] = {**entry, "id": number}

    def _append(self, token: str, token_key: Key) -> int:
        number, self.next = self.next, self.next + 1
        self.ids[token] = self.known[token_key] = number
        return number


def _by_id(table: TokenTable, rows: int, excluded: Set[Key] = frozenset()) -> list[str]:
    """Return the tokens that have an embedding row and are not excluded, in order of id."""
    tokens = table.ids.keys() - excluded
    return sorted((token for token in tokens if table.ids[token] < rows), key=table.ids.__getitem__)
