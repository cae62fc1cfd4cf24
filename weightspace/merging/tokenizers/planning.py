"""Tokenizers in planning: from a recipe's ``tokenizer`` to the row of every token in every model.

Nothing here reads a tensor, and nothing imports torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from weightspace.merging.tokenizers.token_keys import are_alike, ids_by_key
from weightspace.merging.tokenizers.token_table import TokenTable, is_readable, read_token_table
from weightspace.merging.tokenizers.tokenizer_files import extended_tokenizer
from weightspace.merging.tokenizers.vocabulary_tensors import (
    embedding_rows,
    vocabulary_tensors,
    with_rows,
)

#: Takes a line about a decision.
Notice = Callable[[str], None]


@dataclass(frozen=True)
class TokenizerSource:
    """Where the output's tokenizer comes from.

    Attributes:
        folder: of the tokenizer.
        vocabulary: how rows are moved; None: they stay where they are.
    """

    folder: Path
    vocabulary: MovedVocabulary | None


@dataclass(frozen=True)
class _Model:
    """A checkpoint of the merge, with its tokens.

    Attributes:
        member: the checkpoint.
        tensors: those with a row per token, with their shapes.
        table: its tokens; None: it has no tokenizer.
    """

    member: Member
    tensors: Mapping[str, tuple[int, ...]]
    table: TokenTable | None

    @property
    def rows(self) -> int:
        """Rows of its embedding."""
        return embedding_rows(self.tensors) if self.tensors else 0


def plan_vocabulary(
    recipe: Recipe, members: Sequence[Member], donor: Path | None, reading: ReadingOptions, notice: Notice
) -> TokenizerSource | None:
    """Return where the output's tokenizer comes from, and the rows of its tokens; None where the recipe says nothing.

    Args:
        recipe: names the source.
        members: its checkpoints.
        donor: the folder that the configuration comes from.
        reading: how sources are read.
        notice: takes lines about what is assumed.

    Raises:
        CheckpointError: the source is no folder, a file of a tokenizer is damaged, or rows cannot be told.
        WeightspaceError: a tokenizer cannot be read, or a token or model that the recipe names is not there.
    """
    source = recipe.tokenizer_source
    if source is None:
        return None
    folder = donor if source in ("base", "union") else _named(source, reading)
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            f"tokenizer_source {source!r}: there is no such folder. Expected that of a model, or base."
        )
    folders = [member.contents.path for member in members if member.contents.path.is_dir()]
    if not any(map(has_tokenizer, {folder, *folders})):
        if recipe.tokenizer.tokens:
            raise WeightspaceError("The recipe names tokens, but none of its models has a tokenizer.")
        return TokenizerSource(folder, None)
    if _is_unread(folder, folders) and not (recipe.tokenizer.tokens or recipe.tokenizer.multiple):
        notice(f"The tokenizer of {folder.name} is that of all models; it is copied, and no row is moved.")
        return TokenizerSource(folder, None)
    return TokenizerSource(folder, _moved(recipe, members, folder, notice))


def with_moved_rows(members: Sequence[Member], vocabulary: MovedVocabulary) -> tuple[Member, ...]:
    """Return the checkpoints with the shapes that their tensors have once their rows are moved."""
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


def _named(source: str, reading: ReadingOptions) -> Path:
    """Return the folder that a recipe names, by its path or as the result of another document."""
    intermediate = reading.intermediates.get(source)
    return local_path(source, weights=False) if intermediate is None else intermediate.folder


def _is_unread(folder: Path, folders: Sequence[Path]) -> bool:
    """Return whether all have one tokenizer whose ids cannot be read without transformers."""
    alone = all(other == folder or same_tokenizer(folder, other) for other in folders)
    return alone and not is_readable(folder)


def _moved(recipe: Recipe, members: Sequence[Member], folder: Path, notice: Notice) -> MovedVocabulary | None:
    """Return how rows are moved; None where no model has an embedding of tokens."""
    tables: dict[Path, TokenTable | None] = {}
    models = [_model(member, tables) for member in members]
    source = _read(folder, tables)
    if source is None:
        raise WeightspaceError(f"{folder} has no tokenizer, expected one: the recipe takes the output's from there.")
    _check_embeddings(models, source)
    if not any(model.tensors for model in models):
        return None
    models = [_with_table(model, source, notice) for model in models]
    everything = [source, *(model.table for model in models if model.table is not None)]
    alike = are_alike(everything)
    others = [(model.table, model.rows) for model in models if model.table is not None and model.table is not source]
    union = recipe.tokenizer_source == "union"
    output = output_vocabulary(source, others if union else [], recipe.tokenizer.tokens, alike=alike)
    if output.new is not None and output.new.converted is None and not (folder / "tokenizer.json").is_file():
        source = read_token_table(folder, convert=True) or source  # tokens can be added to a tokenizer.json alone
        output = output_vocabulary(source, others if union else [], recipe.tokenizer.tokens, alike=alike)
    if output.unwritten:
        notice(
            f"{output.unwritten:,} tokens of other models cannot be written as those of {folder.name} are; left out."
        )
    own = [_own_rows(model, output, alike=alike, notice=notice) for model in models]
    tokens = len(output.keys)
    multiple = recipe.tokenizer.multiple or 1
    base = next((index for index, member in enumerate(members) if member.source == recipe.base), None)
    chosen = {
        output.ids[token]: _chosen(token, choice, output.ids[token], models, own)
        for token, choice in recipe.tokenizer.tokens.items()
    }
    gaps = tuple(number for number, key in enumerate(output.keys) if key is None)
    layout = (tokens, -(-tokens // multiple) * multiple, tuple(own), base, chosen, gaps)
    files = _files({folder, *(table.folder for table in everything)})
    extended = None if output.new is None else extended_tokenizer(folder, output.new)
    return MovedVocabulary(*layout, tuple(model.tensors for model in models), folder, extended, files)


def _read(folder: Path, tables: dict[Path, TokenTable | None]) -> TokenTable | None:
    """Return the tokens of a folder, those of files that are the same only once."""
    if folder not in tables:
        same = next((other for other in tables if tables[other] and same_tokenizer(folder, other)), None)
        tables[folder] = read_token_table(folder) if same is None else tables[same]
    return tables[folder]


def _model(member: Member, tables: dict[Path, TokenTable | None]) -> _Model:
    """Return a checkpoint with its tokens."""
    path = member.contents.path
    table = _read(path, tables) if path.is_dir() else None
    if member.adapter is not None and has_tokenizer(member.adapter.path):
        own = _read(member.adapter.path, tables)
        if own is not None and (table is None or own.ids != table.ids):
            raise WeightspaceError(
                f"The tokenizer of the adapter {member.adapter.path} has other tokens than that of {path}. Expected "
                "one for both: merge the adapter into its model with PEFT first."
            )
    return _Model(member, vocabulary_tensors(member.label, member.contents), table)


def _check_embeddings(models: Sequence[_Model], source: TokenTable) -> None:
    """Refuse a model whose rows would have to be moved and which has no embedding that is known as one."""
    for model in models:
        if not model.tensors and model.table is not None and model.table.ids != source.ids:
            raise WeightspaceError(
                f"The tokens of {model.member.label} are not those of {source.folder}, and it has no tensor that is "
                "known as an embedding of tokens (model.embed_tokens.weight, say), so that none can be moved. Expected "
                "models with one vocabulary."
            )


def _with_table(model: _Model, source: TokenTable, notice: Notice) -> _Model:
    """Return a model with tokens: those of the output's source where it has no tokenizer, as mergekit has it."""
    if model.table is not None or not model.tensors:
        return model
    notice(f"{model.member.label} has no tokenizer; its tokens are taken to be those of {source.folder.name}.")
    return replace(model, table=source)


def _own_rows(model: _Model, output: OutputVocabulary, *, alike: bool, notice: Notice) -> array[int]:
    """Return the row of each token of the output in a model, -1 where it has none."""
    if model.table is None:
        return array("q")
    ids, count = ids_by_key(model.table, alike=alike), model.rows
    get = ids.get
    rows = array("q", [get(key, -1) if key is not None else -1 for key in output.keys])
    beyond = [number for number in ids.values() if number >= count] if model.table.rows > count else []
    if beyond:
        token = next(token for token, number in model.table.ids.items() if number >= count)
        more = f" and {len(beyond) - 1:,} more tokens" if beyond[1:] else ""
        notice(
            f"{token!r}{more} of {model.member.label} have no row in its embedding of {count:,}: "
            "the model is taken to lack them."
        )
        rows = array("q", [row if row < count else -1 for row in rows])
    return rows


def _chosen(
    token: str, choice: TokenSource, number: int, models: Sequence[_Model], own: Sequence[array[int]]
) -> ChosenRow:
    """Return the row that a recipe chooses for a token."""
    if choice.model is None:
        return ChosenRow(None, 0, choice.force, default=not choice.zero)
    where = f"tokenizer.tokens[{token!r}]"
    index = next((index for index, model in enumerate(models) if model.member.source == choice.model), None)
    if index is None:
        known = ", ".join(model.member.source for model in models[:3])
        raise WeightspaceError(f"{where}: {choice.model!r} is none of the recipe's models. Expected one of {known}.")
    table = models[index].table
    row = own[index][number] if table is not None else -1
    if choice.token is not None:
        row = -1 if table is None else table.ids.get(choice.token, -1)
    elif choice.id is not None:
        row = choice.id
    if not 0 <= row < models[index].rows:
        name = choice.id if choice.id is not None else repr(choice.token or token)
        raise WeightspaceError(
            f"{where}: {choice.model} has no row for {name}. Expected a token that it has, or a row below "
            f"{models[index].rows:,}."
        )
    return ChosenRow(index, row, choice.force)


def _files(folders: set[Path]) -> tuple[Path, ...]:
    """Return the files of the tokenizers of some folders."""
    names = ((folder, name) for folder in sorted(folders) for name in find_companions(folder).copied)
    return tuple(folder / name for folder, name in names if is_tokenizer(name))
