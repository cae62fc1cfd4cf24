"""The tokens of the output with their ids: those of one tokenizer, and behind them those that only others have."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightspace.checkpoints.vocabulary import Tokens
from weightspace.merging.tokenizers.token_keys import Key, ids_by_key, key, written
from weightspace.merging.tokenizers.token_table import TokenTable, added_entry


@dataclass(frozen=True)
class NewTokens:
    """Tokens that the files of a tokenizer get beside their own.

    Attributes:
        ordinary: token -> id, in the order of the ids: part of the vocabulary, no more.
        added: entries of ``added_tokens`` as ``tokenizer.json`` has them, ids included: found in texts as they are.
        converted: text of a ``tokenizer.json`` where the folder has none; None: it has one.
    """

    ordinary: Mapping[str, int] = field(default_factory=dict)
    added: tuple[Mapping[str, Any], ...] = ()
    converted: str | None = None


@dataclass(frozen=True)
class OutputVocabulary:
    """The tokens of the output.

    Attributes:
        source: the tokenizer that it is made from.
        ids: token -> id.
        keys: of the tokens by id; None where no token has the id.
        new: tokens that the source gets beside its own, or None.
        unwritten: tokens of other kinds of tokenizers that this one cannot write, and that are left out.
    """

    source: TokenTable
    ids: Tokens
    keys: Sequence[Key | None]
    new: NewTokens | None
    unwritten: int


def output_vocabulary(
    source: TokenTable, others: Sequence[tuple[TokenTable, int]], extra: Collection[str], *, alike: bool
) -> OutputVocabulary:
    """Return the tokens of the output.

    Args:
        source: the tokenizer that the output's is made from.
        others: tokenizers whose tokens are added, with the number of rows that their models have.
        extra: further tokens.
        alike: all tokenizers of the merge write tokens in the same way.
    """
    union = _Union(source, alike=alike)
    for table, rows in others:
        union.add_ordinary(table, rows)
    for table, rows in others:
        for token in sorted(table.added, key=lambda token, table=table: table.ids.get(token, 0)):
            if table.ids.get(token, rows) < rows:
                union.add_added(token, table.added[token])
    for token in extra:
        if token not in union.ids:
            union.add_added(token, added_entry(token, 0))
    count = 1 + max(union.known.values(), default=-1)
    keys: list[Key | None] = [None] * count
    for own, number in union.known.items():
        keys[number] = own
    changed = bool(union.ordinary or union.added)
    new = NewTokens(union.ordinary, tuple(union.added.values()), source.converted) if changed else None
    return OutputVocabulary(source, union.ids, keys, new, union.unwritten)


class _Union:
    """Tokens that are added to those of a tokenizer, one after the other."""

    def __init__(self, source: TokenTable, *, alike: bool) -> None:
        self.source = source
        self.alike = alike
        self.ids = dict(source.ids)
        self.known = dict(ids_by_key(source, alike=alike))
        self.next = source.rows
        self.ordinary: Tokens = {}
        self.added: dict[str, dict[str, Any]] = {}
        self.unwritten = 0

    def add_ordinary(self, table: TokenTable, rows: int) -> None:
        """Add the tokens of another tokenizer which are part of its vocabulary, no more."""
        for token in _by_id(table, rows, self.known if self.alike else ()):
            own = key(table, token, alike=self.alike)
            if token in table.added or own in self.known:
                continue
            text = token if isinstance(own, str) else written(own, self.source.writing)
            if text is None or text in self.ids:
                self.unwritten += 1
                continue
            self.ordinary[text] = self._new(text, own)

    def add_added(self, token: str, entry: Mapping[str, Any]) -> None:
        """Add a token that is found in texts as it is; one that is an ordinary one of the tokenizer becomes one."""
        if token in self.source.added or token in self.added:
            return
        number = self.ids[token] if token in self.ids else self._new(token, token)
        self.added[token] = {**entry, "id": number}

    def _new(self, token: str, own: Key) -> int:
        number, self.next = self.next, self.next + 1
        self.ids[token] = self.known[own] = number
        return number


def _by_id(table: TokenTable, rows: int, aside: Container[Key] = ()) -> Iterator[str]:
    """Yield the tokens that have a row, in the order of their ids, some left aside."""
    found = (token for token, number in table.ids.items() if number < rows and token not in aside)
    yield from sorted(found, key=table.ids.__getitem__)
