"""Where the output's tokenizer comes from, and whether the models can share it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.fetching import local_path
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.engine.plan import Member
from weightspace.merging.recipe import Recipe


def tokenizer_folder(recipe: Recipe, members: Sequence[Member], donor: Path | None) -> Path | None:
    """Return the folder that a recipe's ``tokenizer_source`` names; None: the donor of the configuration.

    Raises:
        CheckpointError: the source is no folder.
        WeightspaceError: it is ``union``, or a folder, and the models' vocabularies differ.
    """
    source = recipe.tokenizer_source
    if source is None:
        return None
    folder = donor if source in ("base", "union") else local_path(source, weights=False)
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            f"tokenizer_source {source!r}: there is no such folder. Expected that of a model, or base."
        )
    own = _vocabulary(folder)
    for member in members:
        other = _vocabulary(member.contents.path)
        if own is not None and other is not None and own != other:
            raise WeightspaceError(
                f"tokenizer_source {source!r}: the vocabulary of {member.label} ({len(other):,} tokens) is not that of "
                f"{folder} ({len(own):,}). Models are merged token by token: expected one vocabulary in all."
            )
    return folder


def _vocabulary(folder: Path) -> dict[str, Any] | None:
    """Return a tokenizer's vocabulary, token -> id; None where it is not kept as JSON."""
    for name in ("tokenizer.json", "vocab.json"):
        path = folder / name
        if path.is_file():
            try:
                content = json.loads(path.read_bytes())
            except ValueError as error:
                raise CheckpointError(f"{path} is not valid JSON ({error}).") from error
            vocabulary = content.get("model", {}).get("vocab") if name == "tokenizer.json" else content
            if isinstance(vocabulary, dict):
                return vocabulary
            if isinstance(vocabulary, list):  # unigram models: token and score
                return {token: index for index, (token, *_) in enumerate(vocabulary)}
    return None
