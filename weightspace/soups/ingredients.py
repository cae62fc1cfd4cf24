"""Ingredients: the fine-tunes that a soup is made of, as files that are read one at a time, or as state dicts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from weightspace.checkpoints import StateDict, load_checkpoint
from weightspace.checkpoints.disk import one_line_errors
from weightspace.checkpoints.folder import weight_files
from weightspace.checkpoints.reader import read_checkpoint
from weightspace.checkpoints.remote import is_url
from weightspace.errors import WeightspaceError

#: A checkpoint by its path (or URL), or its tensors.
Source: TypeAlias = "StateDict | str | os.PathLike[str]"


@dataclass(frozen=True)
class Ingredient:
    """One model: its name in tables and errors, and where its tensors are."""

    name: str
    source: Source

    def load(self) -> StateDict:
        """Return the tensors: those of a file are read into memory, so that it may change afterwards.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, or changes while it is read.
        """
        return self.source if isinstance(self.source, dict) else read_checkpoint(self.source)

    def mapped(self) -> StateDict:
        """Return the tensors, those of a file mapped into memory, where the format allows it: for all at a time.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
        """
        return self.source if isinstance(self.source, dict) else load_checkpoint(self.source)

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return size and time of change, in nanoseconds, of its files; nothing for tensors and URLs.

        Raises:
            CheckpointError: a file is gone, or cannot be read.
        """
        if isinstance(self.source, dict) or is_url(self.source):
            return ()
        path = Path(self.source)
        with one_line_errors(path, "read"):
            statuses = [file.stat() for file in weight_files(path)]
        return tuple((status.st_size, status.st_mtime_ns) for status in statuses)


def ingredients_of(sources: Sequence[Source]) -> tuple[Ingredient, ...]:
    """Return the ingredients: a file is called by its path, a state dict by its number from 0.

    Raises:
        WeightspaceError: there are none.
    """
    if isinstance(sources, str | os.PathLike | dict) or not len(sources):
        raise WeightspaceError(f"A soup needs a list of one checkpoint or state dict at least; found {sources!r:.80}.")
    return tuple(
        Ingredient(str(number) if isinstance(source, dict) else os.fspath(source), source)
        for number, source in enumerate(sources)
    )
