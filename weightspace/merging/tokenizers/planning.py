"""Plan the output vocabulary: from a recipe's ``tokenizer`` section to the embedding row of each token in each model.

Reads no tensors and does not import torch.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from weightspace.checkpoints.companion_files import find_companions, is_tokenizer
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.vocabulary import has_tokenizer, same_tokenizer
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.plan.moved_vocabulary import ChosenRow, MovedVocabulary
from weightspace.merging.plan.options import ReadingOptions
from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.types import Recipe, TokenSource
from weightspace.merging.tokenizers.output_vocabulary import OutputVocabulary, output_vocabulary
from weightspace.merging.tokenizers.token_keys import ids_by_key, verbatim_tokens
from weightspace.merging.tokenizers.token_table import TokenTable, is_readable, read_token_table
from weightspace.merging.tokenizers.tokenizer_files import extended_tokenizer
from weightspace.merging.tokenizers.vocabulary_tensors import (
    embedding_rows,
    vocabulary_tensors,
    with_rows,
)
from weightspace.suggestions import closest

#: Called with a one-line message about a decision.
Notice = Callable[[str], None]


@dataclass(frozen=True)
class TokenizerSource:
    """Where the output's tokenizer comes from.

    Attributes:
        folder: the tokenizer's folder.
        vocabulary: how embedding rows are reordered; None leaves them in place.
    """

    folder: Path
    vocabulary: MovedVocabulary | None


@dataclass(frozen=True)
class _Model:
    """A checkpoint of the merge and its tokens.

    Attributes:
        member: the checkpoint.
        tensors: shapes of the tensors that have a row per token.
        table: its tokens, or None if it has no tokenizer.
    """

    member: Member
    tensors: Mapping[str, tuple[int, ...]]
    table: TokenTable | None

    @property
    def rows(self) -> int:
        """Number of rows of its embedding."""
        return embedding_rows(self.tensors) if self.tensors else 0


def plan_vocabulary(
    recipe: Recipe,
    members: Sequence[Member],
    donor: Path | None,
    reading: ReadingOptions,
    notice: Notice,
    ignored: Notice | None,
) -> TokenizerSource | None:
    """Return the source of the output's tokenizer and the rows of its tokens; None if the recipe names no tokenizer.

    Args:
        recipe: the recipe, which names the tokenizer's source.
        members: the checkpoints of the merge.
        donor: the folder that the configuration is copied from.
        reading: how sources are read.
        notice: called with a one-line message for each assumption.
        ignored: called with a line if there is no tokenizer at all; None: that is an error.

    Raises:
        CheckpointError: the source is not a folder, a tokenizer file is damaged, or it is ambiguous which tensors have
            a row per token.
        WeightspaceError: a tokenizer cannot be read, or the recipe names a token or model that does not exist.
    """
    source = recipe.tokenizer_source
    if source is None:
        return None
    guess = closest(source, ("union", "base"))
    try:
        folder = donor if source in ("base", "union") else _source_folder(source, reading)
    except CheckpointError:
        if guess is None:
            raise
        folder = None
    if folder is None or not os.path.isdir(folder):  # also false for names that are too long
        raise CheckpointError(
            f"tokenizer_source {source!r}: no such folder. Expected 'union', 'base' or the folder of a model."
            + ("" if guess is None else f" Did you mean {guess!r}?")
        )
    folders = [member.contents.path for member in members if member.contents.path.is_dir()]
    if not any(map(has_tokenizer, {folder, *folders})):
        if recipe.tokenizer.tokens:
            raise WeightspaceError("The recipe names tokens, but none of its models has a tokenizer.")
        line = f"tokenizer_source {source!r} has no effect: none of the models has a tokenizer."
        if ignored is None:
            raise WeightspaceError(f"{line} Leave it out.")
        ignored(line)
        return TokenizerSource(folder, None)
    if _is_shared_unreadable(folder, folders) and not (recipe.tokenizer.tokens or recipe.tokenizer.multiple):
        notice(f"All models share the tokenizer of {folder.name}: it is copied and embedding rows keep their order.")
        return TokenizerSource(folder, None)
    return TokenizerSource(folder, _moved_vocabulary(recipe, members, folder, notice))


def with_moved_rows(members: Sequence[Member], vocabulary: MovedVocabulary) -> tuple[Member, ...]:
    """Return the checkpoints with the tensor shapes that they have after their rows are reordered."""
    return tuple(
        _with_shapes(member, tensors, vocabulary.rows)
        for member, tensors in zip(members, vocabulary.tensors, strict=True)
    )


def _with_shapes(member: Member, tensors: Mapping[str, tuple[int, ...]], rows: int) -> Member:
    infos = dict(member.contents.tensors)
    for name, shape in tensors.items():
        infos[name] = replace(infos[name], shape=with_rows(shape, rows))
    contents: CheckpointMetadata = replace(member.contents, tensors=infos)
    return replace(member, contents=contents, stored=member.stored or member.contents)


def _source_folder(source: str, reading: ReadingOptions) -> Path:
    """Return the folder that a recipe names, either by path or as the result of another document."""
    intermediate = reading.intermediates.get(source)
    return local_path(source, weights=False) if intermediate is None else intermediate.folder


def _is_shared_unreadable(folder: Path, folders: Sequence[Path]) -> bool:
    """Return whether all folders have the same tokenizer and its ids cannot be read without transformers."""
    is_shared = all(other == folder or same_tokenizer(folder, other) for other in folders)
    return is_shared and not is_readable(folder)


def _moved_vocabulary(
    recipe: Recipe, members: Sequence[Member], folder: Path, notice: Notice
) -> MovedVocabulary | None:
    """Return how embedding rows are reordered; None if no model has a token embedding."""
    tables: dict[Path, TokenTable | None] = {}
    models = [_model(member, tables) for member in members]
    source = _read(folder, tables)
    if source is None:
        raise WeightspaceError(f"{folder} has no tokenizer, but the recipe takes the output's tokenizer from there.")
    _check_embeddings(models, source)
    if not any(model.tensors for model in models):
        return None
    models = [_with_table(model, source, notice) for model in models]
    tables_read = [source, *(model.table for model in models if model.table is not None)]
    verbatim = verbatim_tokens(tables_read)
    others = [(model.table, model.rows) for model in models if model.table is not None and model.table is not source]
    union = recipe.tokenizer_source == "union"
    output = output_vocabulary(source, others if union else [], recipe.tokenizer.tokens, verbatim)
    if output.new is not None and output.new.converted is None and not (folder / "tokenizer.json").is_file():
        source = read_token_table(folder, convert=True) or source  # only a tokenizer.json can be extended
        output = output_vocabulary(source, others if union else [], recipe.tokenizer.tokens, verbatim)
    if output.unwritten:
        notice(
            f"{output.unwritten:,} tokens of other models cannot be spelled in the tokenizer of {folder.name} "
            "and are left out."
        )
    own = [_own_rows(model, output, verbatim, notice) for model in models]
    tokens = len(output.keys)
    multiple = recipe.tokenizer.multiple or 1
    chosen = {
        output.ids[token]: _chosen_row(token, choice, output.ids[token], models, own)
        for token, choice in recipe.tokenizer.tokens.items()
    }
    gaps = tuple(number for number, key in enumerate(output.keys) if key is None)
    padded_rows = -(-tokens // multiple) * multiple
    files = _tokenizer_files({folder, *(table.folder for table in tables_read)})
    extended = None if output.new is None else extended_tokenizer(folder, output.new)
    return MovedVocabulary(
        tokens,
        padded_rows,
        tuple(own),
        chosen,
        gaps,
        tuple(model.tensors for model in models),
        folder,
        extended,
        files,
    )


def _read(folder: Path, tables: dict[Path, TokenTable | None]) -> TokenTable | None:
    """Return the tokens of a folder; identical tokenizer files are read only once."""
    if folder not in tables:
        same = next((other for other in tables if tables[other] and same_tokenizer(folder, other)), None)
        tables[folder] = read_token_table(folder) if same is None else tables[same]
    return tables[folder]


def _model(member: Member, tables: dict[Path, TokenTable | None]) -> _Model:
    """Return a checkpoint together with its tokens."""
    path = member.contents.path
    table = _read(path, tables) if path.is_dir() else None
    if member.adapter is not None and has_tokenizer(member.adapter.path):
        own = _read(member.adapter.path, tables)
        if own is not None and (table is None or own.ids != table.ids):
            raise WeightspaceError(
                f"The adapter {member.adapter.path} has a different vocabulary from its model {path}; expected the "
                "same one. Merge the adapter into its model with PEFT first."
            )
    return _Model(member, vocabulary_tensors(member.label, member.contents), table)


def _check_embeddings(models: Sequence[_Model], source: TokenTable) -> None:
    """Refuse a model whose vocabulary differs and whose token embedding cannot be identified."""
    for model in models:
        if not model.tensors and model.table is not None and model.table.ids != source.ids:
            raise WeightspaceError(
                f"{model.member.label} has a different vocabulary from {source.folder}, and none of its tensors is "
                "recognised as a token embedding (such as model.embed_tokens.weight), so its rows cannot be "
                "reordered. Expected models that share one vocabulary."
            )


def _with_table(model: _Model, source: TokenTable, notice: Notice) -> _Model:
    """Return a model with tokens; without a tokenizer, assume the tokens of the output's source, as mergekit does."""
    if model.table is not None or not model.tensors:
        return model
    notice(f"{model.member.label} has no tokenizer; assuming the vocabulary of {source.folder.name}.")
    return replace(model, table=source)


def _own_rows(model: _Model, output: OutputVocabulary, verbatim: frozenset[str] | None, notice: Notice) -> array[int]:
    """Return the row of each output token in a model's embedding, or -1 if the model lacks the token."""
    if model.table is None:
        return array("q")
    ids, count = ids_by_key(model.table, verbatim), model.rows
    found = map(cast("Any", ids).get, output.keys, itertools.repeat(-1))  # None, an unused id, is no key
    rows = array("q", list(found))
    beyond = [number for number in ids.values() if number >= count] if model.table.rows > count else []
    if beyond:
        token = next(token for token, number in model.table.ids.items() if number >= count)
        more = f" and {len(beyond) - 1:,} more tokens" if beyond[1:] else ""
        notice(
            f"{token!r}{more} of {model.member.label} have no row in its embedding of {count:,} rows; "
            "treating them as missing from the model."
        )
        rows = array("q", [row if row < count else -1 for row in rows])
    return rows


def _chosen_row(
    token: str, choice: TokenSource, number: int, models: Sequence[_Model], own: Sequence[array[int]]
) -> ChosenRow:
    """Return the row that the recipe chooses for a token."""
    if choice.model is None:
        return ChosenRow(None, 0, choice.force, default=not choice.zero)
    where = f"tokenizer.tokens[{token!r}]"
    index = next((index for index, model in enumerate(models) if model.member.source == choice.model), None)
    if index is None:
        known = ", ".join(model.member.source for model in models[:3])
        raise WeightspaceError(f"{where}: {choice.model!r} is not a model of the recipe. Expected one of {known}.")
    table = models[index].table
    row = own[index][number] if table is not None else -1
    if choice.token is not None:
        row = -1 if table is None else table.ids.get(choice.token, -1)
    elif choice.id is not None:
        row = choice.id
    if not 0 <= row < models[index].rows:
        name = choice.id if choice.id is not None else repr(choice.token or token)
        raise WeightspaceError(
            f"{where}: {choice.model} has no row for {name}. Expected a token of its vocabulary, or a row below "
            f"{models[index].rows:,}."
        )
    return ChosenRow(index, row, choice.force)


def _tokenizer_files(folders: set[Path]) -> tuple[Path, ...]:
    """Return the tokenizer files of the given folders."""
    names = ((folder, name) for folder in sorted(folders) for name in find_companions(folder).copied)
    return tuple(folder / name for folder, name in names if is_tokenizer(name))
