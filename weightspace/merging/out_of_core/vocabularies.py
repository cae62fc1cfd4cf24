"""Vocabularies of a merge: whether the models share their tokens, and the source of the output's tokenizer.

Rows of embeddings are merged by their index: the same token at another index would be averaged with a stranger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.vocabulary import Tokens, Vocabulary, has_tokenizer, read_vocabulary, same_tokenizer
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.plan.options import ReadingOptions
from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.parse import Recipe

#: Number of tokens that a line names.
_LISTED = 3


def tokenizer_folder(
    recipe: Recipe,
    members: Sequence[Member],
    donor: Path | None,
    reading: ReadingOptions,
    notice: Callable[[str], None],
) -> Path | None:
    """Return the folder that a recipe's ``tokenizer_source`` names; None: the donor of the configuration.

    Args:
        recipe: names the source.
        members: its models.
        donor: the folder that the configuration comes from.
        reading: how sources are read.
        notice: takes lines about what cannot be compared.

    Raises:
        CheckpointError: the source is no folder, or a file of a tokenizer is damaged.
        WeightspaceError: it is ``union``, or a folder, and the models' vocabularies differ.
    """
    source = recipe.tokenizer_source
    if source is None:
        return None
    folder = donor if source in ("base", "union") else _named(source, reading)
    if folder is None or not folder.is_dir():
        raise CheckpointError(
            f"tokenizer_source {source!r}: there is no such folder. Expected that of a model, or base."
        )
    own = read_vocabulary(folder)
    for member in members:
        path = member.contents.path
        if path.is_dir() and not same_tokenizer(folder, path):
            other = read_vocabulary(path)
            _check_equal(source, folder, own, member.label, other)
            for line in _differences(folder.name, own, member.label, other):
                notice(line)
    return folder


def _named(source: str, reading: ReadingOptions) -> Path:
    """Return the folder that a recipe names, by its path or as the result of another document."""
    intermediate = reading.intermediates.get(source)
    return local_path(source, weights=False) if intermediate is None else intermediate.folder


def check_tokens(members: Sequence[Member], donor: Path | None, notice: Callable[[str], None]) -> None:
    """Check that no token has different ids in different models.

    Args:
        members: the models.
        donor: the folder whose tokenizer the output gets.
        notice: called with lines about tokens that only some models have, and vocabularies that cannot be compared.

    Raises:
        CheckpointError: a file of a tokenizer is damaged.
        WeightspaceError: a token has different ids.
    """
    if donor is None:
        return
    label = next(member.label for member in members if member.contents.path == donor)
    others = [(other, path) for other, path in _folders(members) if path != donor and not same_tokenizer(donor, path)]
    if not others:
        return
    known = [(label, read_vocabulary(donor))]
    for other, path in others:
        vocabulary = read_vocabulary(path)
        for known_label, known_vocabulary in known:
            _check_ids(known_label, known_vocabulary, other, vocabulary)
        for line in _differences(label, known[0][1], other, vocabulary):
            notice(line)
        known.append((other, vocabulary))


def _folders(members: Sequence[Member]) -> Iterator[tuple[str, Path]]:
    """Yield the folders that may hold a tokenizer: those of models, and of adapters saved with one."""
    for member in members:
        if member.contents.path.is_dir():
            yield member.label, member.contents.path
        if member.adapter is not None and has_tokenizer(member.adapter.path):
            yield f"the adapter {member.adapter.path.name}", member.adapter.path


def _check_equal(source: str, folder: Path, own: Vocabulary, label: str, other: Vocabulary) -> None:
    """Refuse a vocabulary that is not that of the tokenizer's source."""
    for kind, tokens, others in _comparable(own, other):
        if tokens != others:
            raise WeightspaceError(
                f"tokenizer_source {source!r}: the vocabulary of {label} ({len(others):,} tokens) is not "
                f"that of {folder} ({len(tokens):,}), by {kind}. Models are merged token by token: expected "
                "one vocabulary in all."
            )


def _comparable(one: Vocabulary, other: Vocabulary, *, whole: bool = True) -> Iterator[tuple[str, Tokens, Tokens]]:
    """Yield the comparable tokens of two vocabularies, and the files that they are from.

    Args:
        one: a vocabulary.
        other: another one.
        whole: only if both have all tokens, or both only the added ones.
    """
    if one.row_files and other.row_files and (not whole or one.is_whole == other.is_whole):
        yield ", ".join(sorted({*one.row_files, *other.row_files})), one.rows, other.rows
    for kind in sorted(one.tokens.keys() & other.tokens.keys()):
        if kind not in one.row_files:
            yield kind, one.tokens[kind], other.tokens[kind]


def _check_ids(label: str, one: Vocabulary, other_label: str, other: Vocabulary) -> None:
    """Refuse a token that has different ids in two models."""
    files = [(kind, one.tokens[kind], other.tokens[kind]) for kind in one.row_files if kind in other.tokens]
    for kind, ids, other_ids in [*files, *_comparable(one, other, whole=False)]:
        moved = [token for token, number in ids.items() if other_ids.get(token, number) != number]
        if moved:
            token = moved[0]
            raise WeightspaceError(
                f"{token!r} has id {ids[token]} in {label} and {other_ids[token]} in {other_label} ({kind}; "
                f"{len(moved):,} tokens differ so). Embeddings are merged row by row: expected one id for each token. "
                "Give both models the same tokenizer first."
            )


def _differences(label: str, one: Vocabulary, other_label: str, other: Vocabulary) -> list[str]:
    """Return lines about differences other than ids."""
    lines: list[str] = []
    pairs = list(_comparable(one, other))
    both = "tokenizer.json" in one.tokens and "tokenizer.json" in other.tokens
    if one.is_empty != other.is_empty or (not pairs and (one.tokens or other.tokens)):
        lines.append(
            f"The tokens of {label} ({_files(one)}) and of {other_label} ({_files(other)}) cannot be compared; rows of "
            "embeddings are merged by their index."
        )
    for kind, tokens, others in pairs:
        lines.extend(_only_in(label, tokens, other_label, others, kind))
        lines.extend(_only_in(other_label, others, label, tokens, kind))
    for kind in sorted(one.merges.keys() & other.merges.keys()):
        if one.merges[kind] != other.merges[kind]:
            lines.append(f"{kind} of {other_label} splits text into other tokens than that of {label}: merges differ.")
    for key in sorted(one.rules.keys() | other.rules.keys()):
        if both and one.rules.get(key) != other.rules.get(key):
            lines.append(f"tokenizer.json of {other_label} splits text differently from that of {label}: {key}.")
    for name in sorted(one.others.keys() & other.others.keys()):
        if one.others[name] != other.others[name]:
            lines.append(f"{name} differs between {label} and {other_label} and cannot be compared token by token.")
    return lines


def _only_in(label: str, tokens: Tokens, other_label: str, others: Tokens, kind: str) -> list[str]:
    """Return a line about tokens that one model has and the other lacks."""
    extra = [token for token in tokens if token not in others]
    if not extra:
        return []
    names = ", ".join(f"{token!r} ({tokens[token]})" for token in extra[:_LISTED])
    more = ", …" if len(extra) > _LISTED else ""
    return [f"{label} has {len(extra):,} tokens that {other_label} lacks ({kind}): {names}{more}."]


def _files(vocabulary: Vocabulary) -> str:
    return ", ".join([*vocabulary.tokens, *vocabulary.others]) or "no tokenizer"
