"""The configuration of an output with a vocabulary of its own: its number of rows, and the ids of special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import parse_json, read_json_object
from weightspace.errors import WeightspaceError
from weightspace.merging.config.sections import sections
from weightspace.merging.config.towers import named_tower
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.plan import Member
from weightspace.merging.tokenizers.vocabulary_tensors import embedding_rows

#: Keys of the number of rows.
_SIZES = ("vocab_size", "n_vocab", "padded_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")

#: Keys of ids of tokens: alone, in lists, in lists of lists, and by name.
_ID = re.compile(
    r".*_token_ids?|.*_token_index|(begin_)?suppress_tokens|(bad|force)_words_ids|forced_decoder_ids|(lang|task)_to_id"
)

#: Files that name ids, and those that name the number of rows.
_FILES = ("config.json", "generation_config.json")
_COUNTING = ("config.json", "params.json")

#: Towers whose vocabularies are of something else than text.
_APART = ("vision", "audio", "output", "stem")

#: Keys that may stay empty.
_DISPENSABLE = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id")

#: Takes the place of an id that no token of the output has.
_GONE = -(10**6)


def vocabulary_configurations(
    donor: Path, texts: Mapping[str, str], vocabulary: MovedVocabulary, members: Sequence[Member]
) -> dict[str, str]:
    """Return the files of a configuration that say something else in the output.

    Args:
        donor: the folder that they come from.
        texts: those that say something else already.
        vocabulary: of the output.
        members: the checkpoints.

    Raises:
        CheckpointError: a file is damaged.
        WeightspaceError: a token of the configuration is none of the output.
    """
    index = next(index for index, member in enumerate(members) if member.contents.path == donor)
    own, tensors = vocabulary.own[index], vocabulary.tensors[index]
    ids = {row: number for number, row in enumerate(own) if row >= 0}
    changed = dict(texts)
    for name in dict.fromkeys((*_FILES, *_COUNTING)):
        content = _content(donor, name, texts)
        if content is None:
            continue
        before = json.dumps(content)
        if name in _COUNTING and tensors:
            _set_rows(content, embedding_rows(tensors), vocabulary.rows, needed=name == "config.json")
        if name in _FILES and vocabulary.folder != donor:
            own_ids = _content(vocabulary.folder, name, {}) or _content(vocabulary.folder, "config.json", {}) or {}
            for _, part in list(sections(content)):
                _move_ids(part, _mover(ids, own_ids, donor / name))
        if json.dumps(content) != before:
            changed[name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return changed


def _content(donor: Path, name: str, texts: Mapping[str, str]) -> dict[str, Any] | None:
    if name in texts:
        return parse_json(texts[name], name)
    return read_json_object(donor / name) if (donor / name).is_file() else None


def _set_rows(config: dict[str, Any], old: int, new: int, *, needed: bool) -> None:
    """Set the number of rows wherever the configuration says it of the text."""
    places = [(part, key) for part, key in _sizes(config) if part[key] == old]
    for part, key in places or [(part, key) for part, key in _sizes(config) if key == "vocab_size"][-1:]:
        part[key] = new
    if not places and not any(True for _ in _sizes(config)) and needed:
        config["vocab_size"] = new


def _sizes(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the parts of a configuration that count rows, with the key."""
    for path, part in sections(config):
        if named_tower(path) not in _APART and isinstance(part, dict):
            yield from ((part, key) for key in _SIZES if type(part.get(key)) is int)


def _mover(ids: Mapping[int, int], others: Mapping[str, Any], path: Path) -> Callable[[str, int], int]:
    """Return what takes the key and the id of a token to the id in the output.

    Args:
        ids: id of the donor -> id in the output.
        others: the configuration that the tokenizer comes with, for tokens that the output lacks.
        path: of the configuration, for errors.
    """

    def move(key: str, number: int) -> int:
        if number < 0 or number in ids:
            return ids.get(number, number)
        if key in _DISPENSABLE:
            other = others.get(key)
            return other if type(other) is int else _GONE
        raise WeightspaceError(
            f"{path} names the token with id {number} as {key}, and the output has no such token. Expected a tokenizer "
            "that has it: take union as the tokenizer's source."
        )

    return move


def _move_ids(part: Any, move: Callable[[str, int], int]) -> None:
    """Move the ids of a part of a configuration."""
    for key, value in part.items():
        if _ID.fullmatch(key) and not isinstance(value, bool):
            part[key] = _moved(key, value, move)


def _moved(key: str, value: Any, move: Callable[[str, int], int]) -> Any:
    """Return an id or lists of them in the output; None for one that is gone."""
    if type(value) is int:
        number = move(key, value)
        return None if number == _GONE else number
    if isinstance(value, dict):
        return {name: _moved(key, own, move) for name, own in value.items()}
    if not isinstance(value, list):
        return value
    if key == "forced_decoder_ids":  # pairs of a place in the text and an id
        return [[pair[0], _moved(key, pair[1], move)] if isinstance(pair, list) else pair for pair in value]
    moved = [_moved(key, entry, move) for entry in value]
    return [entry for entry in moved if entry is not None] or None
