"""Write the files of a tokenizer extended by new tokens.

New tokens are appended in ``tokenizer.json``. Ordinary tokens enter the vocabulary without merges, or with a score
below that of every other segmentation, so that texts are split as before. Added tokens are matched verbatim in texts.
Files that hold the old vocabulary in another format are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors, synced_file
from weightspace.checkpoints.json_file import json_document, read_json_object, read_json_text, read_optional_json_object
from weightspace.checkpoints.json_text import find_value
from weightspace.errors import CheckpointError
from weightspace.merging.plan.moved_vocabulary import ExtendedTokenizer
from weightspace.merging.tokenizers.output_vocabulary import NewTokens

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"

#: Files that hold the vocabulary in another format.
_STALE = (
    *("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "encoder.json", "bpe.codes", "tekken.json"),
    *("*.model", "tokenizer.model*", "*.spm", "*.tiktoken"),
)

#: Penalty of an unknown character in a unigram model, below its lowest score.
_UNKNOWN = 10


def extended_tokenizer(source: Path, new: NewTokens) -> ExtendedTokenizer:
    """Return a tokenizer extended by new tokens.

    Args:
        source: folder of the tokenizer to extend.
        new: the new tokens.

    Raises:
        CheckpointError: a file is damaged.
    """
    path = source / _FILE
    text = read_json_text(path) if new.converted is None else new.converted
    try:
        added = _added_tokens(text, new)
        text = _with_added_tokens(_with_vocabulary(text, added, new, path), added)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from None
    entries = {
        str(number): {key: value for key, value in entry.items() if key != "id"} for number, entry in added.items()
    }
    return ExtendedTokenizer(text.encode("utf-8", "surrogatepass"), entries, new.count)


def write_extended(folder: Path, source: Path, tokenizer: ExtendedTokenizer) -> None:
    """Write an extended tokenizer.

    Args:
        folder: the output folder, which holds a copy of the original tokenizer's files.
        source: folder of the original tokenizer.
        tokenizer: the extended tokenizer.

    Raises:
        CheckpointError: a file is damaged or cannot be written.
    """
    for pattern in _STALE:
        for stale in folder.glob(pattern):
            stale.unlink()
    _write(folder / _FILE, tokenizer.text)
    config = read_optional_json_object(source / _CONFIG)
    if (folder / _CONFIG).is_file():
        config = read_json_object(folder / _CONFIG)
    config["added_tokens_decoder"] = {**tokenizer.added, **(config.get("added_tokens_decoder") or {})}
    _write(folder / _CONFIG, json_document(config).encode("utf-8", "surrogatepass"))


def _added_tokens(text: str, new: NewTokens) -> dict[int, Mapping[str, Any]]:
    """Return the entries of ``added_tokens``, those of new tokens included, by id and in its order."""
    found = find_value(text, "added_tokens")
    entries = [*((found[2] if found else None) or []), *new.added]
    added: dict[int, Mapping[str, Any]] = {int(entry["id"]): entry for entry in entries}
    return dict(sorted(added.items()))


def _with_added_tokens(text: str, added: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the text of a ``tokenizer.json`` with the entries as its ``added_tokens``."""
    written = _dumped(list(added.values()))
    found = find_value(text, "added_tokens")
    if found is not None:
        return text[: found[0]] + written + text[found[1] :]
    start = text.index("{") + 1
    return f'{text[:start]}"added_tokens":{written},{text[start:]}'


def _with_vocabulary(text: str, added: Mapping[int, Mapping[str, Any]], new: NewTokens, path: Path) -> str:
    """Return the text of a ``tokenizer.json`` with new tokens appended to the vocabulary of its model.

    Raises:
        CheckpointError: it has no model, or the new ids don't follow those of its model.
        JSONDecodeError: it isn't valid JSON.
    """
    tokens = {str(entry["content"]): number for number, entry in added.items()} | dict(new.ordinary)
    found = find_value(text, "model", "vocab")
    if found is None or not isinstance(found[2], (dict, list)):
        raise CheckpointError(f"{path} is not a tokenizer: expected a model with a vocab in it. Copy it again.")
    _, end, vocab = found
    if not new.ordinary and _follow(vocab, tokens):
        return text
    # List added tokens in the vocabulary, too: libraries number those that aren't there from its size on.
    further = _scored(vocab, tokens, path) if isinstance(vocab, list) else _unlisted(vocab, tokens)
    comma = "," if vocab and further else ""
    last = len(text[: end - 1].rstrip())
    return f"{text[:last]}{comma}{_dumped(further)[1:-1]}{text[last:]}"


def _follow(vocab: Sequence[Sequence[Any]] | Mapping[str, int], tokens: Mapping[str, int]) -> bool:
    """Return whether the ids of the tokens that a vocabulary lacks follow its size."""
    known = {token for token, _ in vocab} if isinstance(vocab, list) else vocab
    ids = sorted(number for token, number in tokens.items() if token not in known)
    return ids == list(range(len(vocab), len(vocab) + len(ids)))


def _unlisted(vocab: Mapping[str, int], tokens: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that a vocabulary lacks."""
    return {token: number for token, number in tokens.items() if token not in vocab}


def _scored(vocab: Sequence[Sequence[Any]], tokens: Mapping[str, int], path: Path) -> list[tuple[str, float]]:
    """Return the tokens that the vocabulary of a unigram model lacks, with scores; a token's id is its position.

    Raises:
        CheckpointError: there are unused ids between them.
    """
    least = min((float(score) for _, score in vocab), default=0.0) - _UNKNOWN
    further = sorted(_unlisted({token: 0 for token, _ in vocab}, tokens).items(), key=lambda pair: pair[1])
    for expected, (token, number) in enumerate(further, start=len(vocab)):
        if number != expected:
            raise CheckpointError(
                f"{path}: no token has id {expected}, so {token!r} cannot be appended with id {number}. Expected "
                "ids without gaps."
            )
    return [(token, least * (len(token) + 1)) for token, _ in further]


def _dumped(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _write(path: Path, content: bytes) -> None:
    with one_line_errors(path, "written"):
        path.unlink(missing_ok=True)
        with synced_file(path) as file:
            file.write(content)
