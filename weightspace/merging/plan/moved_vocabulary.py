"""Mapping from the models' embedding rows to the output's token ids."""

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
        member: index in ``Plan.members`` of the checkpoint that the row comes from, or None for a zero row.
        row: the row's index in that checkpoint's tensors.
        force: whether it also replaces the row in checkpoints that have the token.
        default: whether the recipe chooses no row, so that the default row for missing tokens is used.
    """

    member: int | None
    row: int
    force: bool
    default: bool = False


@dataclass(frozen=True)
class ExtendedTokenizer:
    """A tokenizer extended by new tokens.

    Attributes:
        text: content of its ``tokenizer.json``, in UTF-8.
        added: id -> entry of ``added_tokens_decoder`` in its configuration.
        new: number of new tokens.
    """

    text: bytes
    added: Mapping[str, Mapping[str, Any]]
    new: int


@dataclass(frozen=True)
class MovedVocabulary:
    """How embedding rows are reordered before the checkpoints are merged.

    Attributes:
        tokens: number of output ids, including unused ids between tokens; rows after them are padding.
        rows: number of rows of the output, including padding.
        own: for each checkpoint, its row of each token, indexed by output id; -1 if it lacks the token.
        chosen: output id -> row, for tokens whose row the recipe chooses.
        gaps: unused ids between those of tokens; their rows are padding, too.
        tensors: for each checkpoint, the tensors with a row per token and their shapes in its files.
        folder: folder of the output's tokenizer.
        extended: extended tokenizer that replaces it, or None to copy it unchanged.
        files: the files that the ids are read from.
        further: rows for tokens that no checkpoint has, by tensor name, or None. They count as an additional
            checkpoint, the last one in ``own``.
    """

    tokens: int
    rows: int
    own: tuple[array[int], ...]
    chosen: Mapping[int, ChosenRow]
    gaps: tuple[int, ...]
    tensors: tuple[Mapping[str, tuple[int, ...]], ...]
    folder: Path
    extended: ExtendedTokenizer | None
    files: Collection[Path]
    further: CheckpointMetadata | None = None

    def moves(self, member: int, name: str) -> bool:
        """Return whether the rows of a tensor are reordered."""
        return name in self.tensors[member]
