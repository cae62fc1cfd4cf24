"""Checks that the GGUF files of a merge fit the other models: their tokens, and their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.gguf.header import Header, read_header
from weightspace.checkpoints.vocabulary import read_vocabulary
from weightspace.errors import WeightspaceError
from weightspace.merging.plan.plan import Member

#: Field of the tokens, in the order of their ids.
_TOKENS = "tokenizer.ggml.tokens"


def check_gguf_models(members: Sequence[Member], notice: Callable[[str], None]) -> None:
    """Check that no token has different ids in a GGUF file and another model, and report fields that differ.

    Args:
        members: the models.
        notice: called with a line on each hyperparameter that differs between GGUF files.

    Raises:
        CheckpointError: a tokenizer is damaged.
        WeightspaceError: a token has different ids.
    """
    headers = {member.title: header for member in members if (header := _header(member)) is not None}
    if not headers:
        return
    label, header = next(iter(headers.items()))
    known = _tokens(header)
    for other, theirs in list(headers.items())[1:]:
        _check(label, known, other, _tokens(theirs))
        for line in _differences(label, header, other, theirs):
            notice(line)
    for member in members:
        if member.contents.path.is_dir() and member.plan is None:
            _check(label, known, member.title, read_vocabulary(member.contents.path).rows)


def _header(member: Member) -> Header | None:
    """Return the header of a model that is a GGUF file."""
    path = member.contents.path
    is_file = member.plan is None and path.is_file() and file_format(path) == "gguf"
    return read_header(path) if is_file else None


def _tokens(header: Header) -> Mapping[str, int]:
    """Return the tokens of a file and their ids."""
    tokens = header.value(_TOKENS)
    return {token: number for number, token in enumerate(tokens)} if isinstance(tokens, list) else {}


def _check(label: str, tokens: Mapping[str, int], other: str, theirs: Mapping[str, int]) -> None:
    """Check that no token has different ids in two models."""
    moved = [token for token, number in theirs.items() if tokens.get(token, number) != number]
    if moved:
        token = moved[0]
        raise WeightspaceError(
            f"{token!r} has id {tokens[token]} in {label} and {theirs[token]} in {other} ({len(moved):,} tokens have "
            "different ids). Embeddings are merged row by row: expected one id for each token."
        )


def _differences(label: str, header: Header, other: str, theirs: Header) -> list[str]:
    """Return lines on the hyperparameters that differ between two files."""
    family = header.value("general.architecture")
    keys = [key for key in header.fields.keys() | theirs.fields.keys() if key.startswith(f"{family}.")]
    pairs = {key: (header.value(key), theirs.value(key)) for key in sorted(keys)}
    return [
        f"{key} is {str(own)[:80]} in {label} and {str(value)[:80]} in {other}."
        for key, (own, value) in pairs.items()
        if own != value
    ]
