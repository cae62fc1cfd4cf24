"""Write the files of a tokenizer extended by new tokens.

New tokens are appended in ``tokenizer.json``. Ordinary tokens enter the vocabulary without merges, or with a score
below that of every other segmentation, so that texts are split as before. Added tokens are matched verbatim in texts.
Files that hold the old vocabulary in another format are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors, synced_file
from weightspace.checkpoints.json_file import parse_json, read_json_object
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
    content = read_json_object(path) if new.converted is None else parse_json(new.converted, str(path))
    text = json.dumps(_extended(content, new, path), ensure_ascii=False, separators=(",", ":")) + "\n"
    added = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in content["added_tokens"]
    }
    return ExtendedTokenizer(text.encode("utf-8", "surrogatepass"), added)


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
    config = read_json_object(source / _CONFIG) if (source / _CONFIG).is_file() else {}
    if (folder / _CONFIG).is_file():
        config = read_json_object(folder / _CONFIG)
    config["added_tokens_decoder"] = {**tokenizer.added, **(config.get("added_tokens_decoder") or {})}
    _write(folder / _CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))


def _extended(content: dict[str, Any], new: NewTokens, path: Path) -> dict[str, Any]:
    """Add new tokens to the content of a ``tokenizer.json``, in place, and return it.

    Raises:
        CheckpointError: the content is not that of a tokenizer.
    """
    added = {int(entry["id"]): entry for entry in content.get("added_tokens") or []}
    added |= {int(entry["id"]): dict(entry) for entry in new.added}
    content["added_tokens"] = [added[number] for number in sorted(added)]
    model = content.get("model")
    if new.ordinary and not isinstance(model, dict):
        raise CheckpointError(f"{path} is not a tokenizer: expected a model in it. Copy it again.")
    if new.ordinary and isinstance(model, dict):
        # List added tokens in the vocabulary, too: libraries take its size as the id of the next token.
        further = {str(entry["content"]): number for number, entry in added.items()} | dict(new.ordinary)
        vocab = model.get("vocab")
        if isinstance(vocab, list):
            _extend_scored(vocab, further, path)
        else:
            model["vocab"] = {**(vocab or {}), **{t: n for t, n in further.items() if t not in (vocab or {})}}
    return content


def _extend_scored(vocab: list[Any], further: Mapping[str, int], path: Path) -> None:
    """Append tokens to the vocabulary of a unigram model, in which a token's id is its position."""
    least = min((float(score) for _, score in vocab), default=0.0) - _UNKNOWN
    known = {token for token, _ in vocab}
    for token, number in sorted(further.items(), key=lambda pair: pair[1]):
        if token in known:
            continue
        if number != len(vocab):
            raise CheckpointError(
                f"{path}: no token has id {len(vocab)}, so {token!r} cannot be appended with id {number}. Expected "
                "ids without gaps."
            )
        vocab.append([token, least * (len(token) + 1)])


def _write(path: Path, content: bytes) -> None:
    with one_line_errors(path, "written"):
        path.unlink(missing_ok=True)
        with synced_file(path) as file:
            file.write(content)
