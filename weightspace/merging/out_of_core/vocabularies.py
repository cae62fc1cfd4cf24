"""Check that the models of a merge share their token ids, when the recipe names no tokenizer.

Embedding rows are merged by index, so a token with different ids would be averaged with an unrelated token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightspace.checkpoints.components import tokenizer_folders
from weightspace.checkpoints.vocabulary import Tokens, Vocabulary, has_tokenizer, read_vocabulary, same_tokenizer
from weightspace.errors import WeightspaceError
from weightspace.merging.plan.plan import Member

#: Maximum number of tokens listed in a message.
_LISTED = 3


@dataclass(frozen=True)
class UseOfTokens:
    """What becomes of the models' token ids, for messages.

    Attributes:
        conflict: reason why a token needs one id, and what to do.
        unknown: consequence of vocabularies that cannot be compared.
    """

    conflict: str
    unknown: str


#: A merge averages embeddings by index.
MERGED = UseOfTokens(
    "Embeddings are merged row by row: expected one id for each token. `tokenizer: {source: union}` in a recipe merges "
    "them by token.",
    "embedding rows are merged by index",
)


def check_tokens(
    members: Sequence[Member],
    donor: Path | None,
    notice: Callable[[str], None],
    *,
    use: UseOfTokens = MERGED,
    lenient: bool = False,
) -> None:
    """Check that no token has different ids in different models.

    Args:
        members: the models.
        donor: the folder whose tokenizer the output gets.
        notice: called with a one-line message about tokens that only some models have, and about vocabularies that
            cannot be compared.
        use: what becomes of the ids, for the messages.
        lenient: report a token with different ids through ``notice``, too.

    Raises:
        CheckpointError: a file of a tokenizer is damaged.
        WeightspaceError: a token has different ids.
    """
    if donor is None:
        return
    label = next(member.label for member in members if member.contents.path == donor)
    for name, folder in tokenizer_folders(donor).items():
        _check_tokens(label, folder, _folders(members, name), notice, use, lenient=lenient)


def _check_tokens(
    label: str,
    donor: Path,
    folders: Iterable[tuple[str, Path]],
    notice: Callable[[str], None],
    use: UseOfTokens,
    *,
    lenient: bool,
) -> None:
    """Check that no token has different ids in the donor's tokenizer, labelled ``label``, and in those of others."""
    others = [(other, path) for other, path in folders if path != donor and not same_tokenizer(donor, path)]
    if not others:
        return
    known = [(label, read_vocabulary(donor))]
    for other, path in others:
        vocabulary = read_vocabulary(path)
        for known_label, known_vocabulary in known:
            conflict = _conflict(known_label, known_vocabulary, other, vocabulary)
            if conflict is not None and not lenient:
                raise WeightspaceError(f"{conflict}. {use.conflict}")
            if conflict is not None:
                notice(f"{conflict}. {use.conflict}")
        for line in _differences(label, known[0][1], other, vocabulary, use):
            notice(line)
        known.append((other, vocabulary))


def _folders(members: Sequence[Member], name: str) -> Iterator[tuple[str, Path]]:
    """Yield the folders that may hold a tokenizer: those of models, and those of adapters saved with a tokenizer.

    Args:
        members: the models.
        name: the tokenizer of a pipeline; ``""``: that of other models.
    """
    for member in members:
        path = member.contents.path
        if path.is_dir() and (folder := tokenizer_folders(path).get(name)) is not None:
            yield member.label, folder
        if member.adapter is not None and has_tokenizer(member.adapter.path):
            yield f"the adapter {member.adapter.path.name}", member.adapter.path


def _comparable(one: Vocabulary, other: Vocabulary, *, whole: bool = True) -> Iterator[tuple[str, Tokens, Tokens]]:
    """Yield the comparable tokens of two vocabularies, with the files that they come from.

    Args:
        one: the first vocabulary.
        other: the second vocabulary.
        whole: compare embedding rows only if both vocabularies are complete, or both list only added tokens.
    """
    if one.row_files and other.row_files and (not whole or one.is_whole == other.is_whole):
        yield ", ".join(sorted({*one.row_files, *other.row_files})), one.rows, other.rows
    for kind in sorted(one.tokens.keys() & other.tokens.keys()):
        if kind not in one.row_files:
            yield kind, one.tokens[kind], other.tokens[kind]


def _conflict(label: str, one: Vocabulary, other_label: str, other: Vocabulary) -> str | None:
    """Return a phrase about a token that has different ids in two models, if there is one."""
    files = [(kind, one.tokens[kind], other.tokens[kind]) for kind in one.row_files if kind in other.tokens]
    for kind, ids, other_ids in [*files, *_comparable(one, other, whole=False)]:
        moved = [token for token, number in ids.items() if other_ids.get(token, number) != number]
        if moved:
            token = moved[0]
            return (
                f"{token!r} has id {ids[token]} in {label} and {other_ids[token]} in {other_label} ({kind}; "
                f"{len(moved):,} tokens have different ids)"
            )
    return None


def _differences(label: str, one: Vocabulary, other_label: str, other: Vocabulary, use: UseOfTokens) -> list[str]:
    """Return one-line messages about differences other than ids."""
    lines: list[str] = []
    pairs = list(_comparable(one, other))
    both = "tokenizer.json" in one.tokens and "tokenizer.json" in other.tokens
    if one.is_empty != other.is_empty or (not pairs and (one.tokens or other.tokens)):
        lines.append(
            f"The vocabularies of {label} ({_files(one)}) and {other_label} ({_files(other)}) cannot be compared; "
            f"{use.unknown}."
        )
    for kind, tokens, others in pairs:
        lines.extend(_only_in(label, tokens, other_label, others, kind))
        lines.extend(_only_in(other_label, others, label, tokens, kind))
    for kind in sorted(one.merges.keys() & other.merges.keys()):
        if one.merges[kind] != other.merges[kind]:
            lines.append(f"{kind} of {other_label} and {label} tokenize text differently: their merges differ.")
    for key in sorted(one.rules.keys() | other.rules.keys()):
        if both and one.rules.get(key) != other.rules.get(key):
            lines.append(f"tokenizer.json of {other_label} and {label} tokenize text differently: {key} differs.")
    for name in sorted(one.others.keys() & other.others.keys()):
        if one.others[name] != other.others[name]:
            lines.append(f"{name} differs between {label} and {other_label} and cannot be compared token by token.")
    return lines


def _only_in(label: str, tokens: Tokens, other_label: str, others: Tokens, kind: str) -> list[str]:
    """Return a message about tokens that one model has and the other lacks, if any."""
    extra = [token for token in tokens if token not in others]
    if not extra:
        return []
    names = ", ".join(f"{token!r} ({tokens[token]})" for token in extra[:_LISTED])
    more = ", …" if len(extra) > _LISTED else ""
    return [f"{label} has {len(extra):,} tokens that {other_label} lacks ({kind}): {names}{more}."]


def _files(vocabulary: Vocabulary) -> str:
    return ", ".join([*vocabulary.tokens, *vocabulary.others]) or "no tokenizer"
