"""The vocabulary of an output whose tokens have other ids in its models: which row of which model each token has."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.metadata import CheckpointMetadata


@dataclass(frozen=True)
class ChosenRow:
    """The row that a recipe chooses for a token.

    Attributes:
        member: the checkpoint that it comes from, by its place in ``Plan.members``; None: the row is zero.
        row: in that checkpoint's tensors.
        force: checkpoints that have the token get it, too.
        default: none is chosen, but all checkpoints get what those that lack the token would.
    """

    member: int | None
    row: int
    force: bool
    default: bool = False


@dataclass(frozen=True)
class ExtendedTokenizer:
    """A tokenizer with more tokens than the one that it is made from.

    Attributes:
        text: of its ``tokenizer.json``, in UTF-8.
        added: id -> entry of ``added_tokens_decoder`` in its configuration.
    """

    text: bytes
    added: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class MovedVocabulary:
    """How rows by tokens are moved before the checkpoints are merged.

    Attributes:
        tokens: rows that belong to tokens, or lie between them; those behind are padding, the mean of these.
        rows: of the output.
        own: for each checkpoint its row of each token, by the output's ids; -1 where it lacks the token.
        base: the checkpoint whose row those get that lack a token, where it has it; None: the mean of those that do.
        chosen: id in the output -> its row, where the recipe chooses.
        gaps: ids between those of tokens that no token has; their rows are padding, too.
        tensors: for each checkpoint its tensors with a row per token; the sizes that they have in its files.
        folder: where the output's tokenizer comes from.
        extended: what replaces that tokenizer; None: it is copied as it is.
        files: that the ids are read from.
        further: rows for tokens that no checkpoint has, under the names of the tensors; they count as one more
            checkpoint, the last one of ``own``. None: there are none.
    """

    tokens: int
    rows: int
    own: tuple[array[int], ...]
    base: int | None
    chosen: Mapping[int, ChosenRow]
    gaps: tuple[int, ...]
    tensors: tuple[Mapping[str, tuple[int, ...]], ...]
    folder: Path
    extended: ExtendedTokenizer | None
    files: Collection[Path]
    further: CheckpointMetadata | None = None

    def moves(self, member: int, name: str) -> bool:
        """Return whether the rows of a tensor are moved."""
        return name in self.tensors[member]
