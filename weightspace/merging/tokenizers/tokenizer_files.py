"""The files of a tokenizer that has more tokens than the one that it is made from.

New tokens follow the others in ``tokenizer.json``. Ordinary ones become part of its vocabulary without merges or with
a score that no other way to split a text is below, so that texts are split as before; those that were added to a
tokenizer are found in texts as they are. Files that keep the old vocabulary beside it are left out.
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

#: Files of the same vocabulary in other forms.
_STALE = (
    *("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "encoder.json", "bpe.codes", "tekken.json"),
    *("*.model", "tokenizer.model*", "*.spm", "*.tiktoken"),
)

#: What an unknown character costs below the least score of a unigram model.
_UNKNOWN = 10


def extended_tokenizer(source: Path, new: NewTokens) -> ExtendedTokenizer:
    """Return a tokenizer with more tokens.

    Args:
        source: the folder of the one that it is made from.
        new: the tokens.

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
    """Write a tokenizer with more tokens.

    Args:
        folder: holds a copy of the files of the tokenizer that it is made from.
        source: the folder that they were copied from.
        tokenizer: the tokenizer.

    Raises:
        CheckpointError: a file is damaged, or the disk refuses.
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
    """Return the content of ``tokenizer.json`` with more tokens; it is changed.

    Raises:
        CheckpointError: it is no tokenizer.
    """
    added = {int(entry["id"]): entry for entry in content.get("added_tokens") or []}
    added |= {int(entry["id"]): dict(entry) for entry in new.added}
    content["added_tokens"] = [added[number] for number in sorted(added)]
    model = content.get("model")
    if new.ordinary and not isinstance(model, dict):
        raise CheckpointError(f"{path} is no tokenizer: it has no model. Copy it again.")
    if new.ordinary and isinstance(model, dict):
        # All ids stand in the vocabulary then: a library that adds a token takes the size of it as the next id.
        further = {str(entry["content"]): number for number, entry in added.items()} | dict(new.ordinary)
        vocab = model.get("vocab")
        if isinstance(vocab, list):
            _extend_scored(vocab, further, path)
        else:
            model["vocab"] = {**(vocab or {}), **{t: n for t, n in further.items() if t not in (vocab or {})}}
    return content


def _extend_scored(vocab: list[Any], further: Mapping[str, int], path: Path) -> None:
    """Add tokens to the list of a unigram model, whose ids are places."""
    least = min((float(score) for _, score in vocab), default=0.0) - _UNKNOWN
    known = {token for token, _ in vocab}
    for token, number in sorted(further.items(), key=lambda pair: pair[1]):
        if token in known:
            continue
        if number != len(vocab):
            raise CheckpointError(
                f"{path}: no token has id {len(vocab)}, so that none can follow as {token!r} with id {number}. "
                "Expected ids without gaps."
            )
        vocab.append([token, least * (len(token) + 1)])


def _write(path: Path, content: bytes) -> None:
    with one_line_errors(path, "written"):
        path.unlink(missing_ok=True)
        with synced_file(path) as file:
            file.write(content)
