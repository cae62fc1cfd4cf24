"""Transplant another model's vocabulary: shared tokens keep their embedding rows, new tokens get approximated ones.

All other tensors are copied unchanged. As in mergekit's tokensurgeon, there are three methods for new tokens: the mean
of the subwords into which the model splits the token; the nearest shared tokens in the donor model's embedding; and
orthogonal matching pursuit, which approximates the token's row in the donor by rows of shared tokens.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import WeightspaceError
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.run import run_plan
from weightspace.merging.plan.listeners import Listeners
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions
from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.types import Recipe, Slice, Source, TokenizerKeys
from weightspace.merging.tokenizers.token_table import TokenTable, read_token_table
from weightspace.reprs import brief
from weightspace.suggestions import unknown

#: Methods to compute rows for tokens that the model lacks.
TransplantMethod = Literal["omp", "nearest", "subword"]
TRANSPLANT_METHODS: tuple[TransplantMethod, ...] = ("omp", "nearest", "subword")


@brief
@dataclass(frozen=True)
class TransplantReport:
    """The result of a transplant.

    Attributes:
        out: the output folder.
        tokens: number of tokens of the new vocabulary.
        shared: number of tokens that both models share; they keep their rows.
        approximated: number of tokens with approximated rows.
        method: the method used to approximate them.
        warnings: one-line messages about assumptions that were made.

    Example:
        >>> from weightspace.merging.transplant import TransplantReport
        >>> TransplantReport("out", 10, 8, 2, "omp").approximated
        2
    """

    out: str
    tokens: int
    shared: int
    approximated: int
    method: str
    warnings: tuple[str, ...] = ()


def transplant(
    model: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: TransplantMethod = "omp",
    neighbours: int = 64,
    output: OutputOptions | None = None,
    execution: ExecutionOptions | None = None,
) -> TransplantReport:
    """Replace a model's vocabulary with that of another model.

    Args:
        model: folder of the language model.
        tokenizer: folder of the donor model; ``"subword"`` needs only its tokenizer.
        out: folder to write; it can be loaded with transformers.
        method: how to compute rows for new tokens: ``"omp"``, ``"nearest"`` or ``"subword"``.
        neighbours: maximum number of shared tokens per approximated row; ignored by ``"subword"``.
        output: options of the output.
        execution: options of the run.

    Raises:
        CheckpointError: a folder is damaged, or ``out`` cannot be written.
        WeightspaceError: a tokenizer cannot be read, the models share no token, or an option is invalid.

    Source:
        Goddard, Fernandes Neto 2025, https://arxiv.org/abs/2506.06607.
    """
    if method not in TRANSPLANT_METHODS:
        raise unknown("method", method, TRANSPLANT_METHODS)
    if type(neighbours) is not int or neighbours < 1:
        raise WeightspaceError(f"neighbours must be an integer of at least 1, found {neighbours!r}.")
    other, warnings = local_path(str(tokenizer), weights=method != "subword"), list[str]()
    recipe = _recipe(str(model), str(tokenizer))
    recorded = {"transplant": method, **({} if method == "subword" else {"neighbours": neighbours})}
    output = replace(output or OutputOptions(), recorded={**((output and output.recorded) or {}), **recorded})
    counts: dict[str, int] = {}
    with TemporaryDirectory() as folder:

        def further(vocabulary: MovedVocabulary, members: Sequence[Member]) -> MovedVocabulary:
            lacking = [n for n, row in enumerate(vocabulary.own[0]) if row < 0 and n not in set(vocabulary.gaps)]
            counts.update(tokens=vocabulary.tokens - len(vocabulary.gaps), lacking=len(lacking))
            if not lacking:
                return vocabulary
            return _with_rows(vocabulary, members[0], other, lacking, method, neighbours, Path(folder) / "rows")

        options = PlanOptions(output, further_rows=further)
        plan = make_plan(recipe, Path(out), options, Listeners(None, warnings.append, warnings.append))
        if plan.vocabulary is None:
            raise WeightspaceError(
                f"{model} has no token embedding, or no tokenizer that can be read; expected the folder of a language "
                "model."
            )
        run_plan(plan, Path(out), execution or ExecutionOptions())
    shared = counts["tokens"] - counts["lacking"]
    return TransplantReport(str(out), counts["tokens"], shared, counts["lacking"], method, tuple(warnings))


def _recipe(model: str, tokenizer: str) -> Recipe:
    """Return the recipe that copies a model with its rows in the order of another tokenizer, both named as by the user.

    The tokenizer is a folder, even if it is named like a key word of recipes.
    """
    source = Source(model, {}, None, None)
    tokenizer = f"./{tokenizer}" if tokenizer in ("base", "union") else tokenizer
    keys = TokenizerKeys(tokenizer)
    content: Mapping[str, Any] = {
        "merge_method": "passthrough",
        "models": [{"model": model}],
        "tokenizer_source": tokenizer,
    }
    return Recipe("passthrough", None, (Slice((source,), {}),), {}, None, None, keys, content)


def _with_rows(
    vocabulary: MovedVocabulary,
    member: Member,
    other: Path,
    lacking: Sequence[int],
    method: str,
    neighbours: int,
    place: Path,
) -> MovedVocabulary:
    """Compute rows for the tokens that the model lacks, save them to a file, and return the extended vocabulary."""
    from weightspace.checkpoints import save_checkpoint
    from weightspace.merging.tokenizers.new_rows import NewRows

    table = _table(member.contents.path)
    rows = NewRows(vocabulary, member, table, _table(other), lacking)
    if method == "subword":
        state = rows.by_subwords()
    else:
        state = rows.by_shared_tokens(_weights(other), method=method, neighbours=neighbours)
    file = place.with_suffix(".safetensors")
    save_checkpoint(state, file)
    own = array("q", [-1]) * vocabulary.tokens
    for row, token in enumerate(lacking):
        own[token] = row
    return replace(vocabulary, own=(*vocabulary.own, own), further=read_contents(file))


def _table(folder: Path) -> TokenTable:
    """Return the tokens of a folder."""
    table = read_token_table(folder) if folder.is_dir() else None
    if table is None:
        raise WeightspaceError(f"{folder} has no tokenizer; expected the folder of a language model with one.")
    return table


def _weights(folder: Path) -> CheckpointMetadata:
    """Return the donor model's metadata."""
    return read_contents(folder)
