"""Update the output's configuration to a new vocabulary: the vocabulary size and the ids of special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import json_document, parse_json, read_json_object
from weightspace.errors import WeightspaceError
from weightspace.merging.config.sections import sections
from weightspace.merging.config.towers import named_tower
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.plan import Member
from weightspace.merging.tokenizers.vocabulary_tensors import embedding_rows

#: Configuration keys for the number of embedding rows.
_SIZES = ("vocab_size", "n_vocab", "padded_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")

#: Configuration keys for token ids: single ids, lists, nested lists, and mappings by name.
_ID = re.compile(
    r".*_token_ids?|.*_token_index|(begin_)?suppress_tokens|(bad|force)_words_ids|forced_decoder_ids|(lang|task)_to_id"
)

#: Files that contain token ids, and files that contain the number of rows.
_FILES = ("config.json", "generation_config.json")
_COUNTING = ("config.json", "params.json")

#: Towers whose vocabulary is not that of the text.
_APART = ("vision", "audio", "output", "stem")

#: Keys that may be null.
_OPTIONAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id")

#: Placeholder for the id of a token that the output lacks.
_MISSING = -(10**6)


def vocabulary_configurations(
    donor: Path, texts: Mapping[str, str], vocabulary: MovedVocabulary, members: Sequence[Member]
) -> dict[str, str]:
    """Return the configuration files whose content changes in the output.

    Args:
        donor: the folder that the configuration is copied from.
        texts: file name -> new text, for files that have already been changed.
        vocabulary: the output's vocabulary.
        members: the checkpoints of the merge.

    Raises:
        CheckpointError: a file is damaged.
        WeightspaceError: the configuration uses a token that the output lacks.
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
                _map_ids(part, _id_mapping(ids, own_ids, donor / name))
        if json.dumps(content) != before:
            changed[name] = json_document(content)
    return changed


def _content(donor: Path, name: str, texts: Mapping[str, str]) -> dict[str, Any] | None:
    if name in texts:
        return parse_json(texts[name], name)
    return read_json_object(donor / name) if (donor / name).is_file() else None


def _set_rows(config: dict[str, Any], old: int, new: int, *, needed: bool) -> None:
    """Set the number of rows at every key that holds the text vocabulary's size."""
    places = [(part, key) for part, key in _sizes(config) if part[key] == old]
    for part, key in places or [(part, key) for part, key in _sizes(config) if key == "vocab_size"][-1:]:
        part[key] = new
    if not places and not any(True for _ in _sizes(config)) and needed:
        config["vocab_size"] = new


def _sizes(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the sections of a configuration that state a vocabulary size, each with the key."""
    for path, part in sections(config):
        if named_tower(path) not in _APART and isinstance(part, dict):
            yield from ((part, key) for key in _SIZES if type(part.get(key)) is int)


def _id_mapping(ids: Mapping[int, int], fallback: Mapping[str, Any], path: Path) -> Callable[[str, int], int]:
    """Return the function that maps a configuration key and a token id to the id in the output.

    Args:
        ids: id in the donor -> id in the output.
        fallback: the configuration next to the output's tokenizer, used for tokens that the output lacks.
        path: path of the configuration, for errors.
    """

    def new_id(key: str, number: int) -> int:
        if number < 0 or number in ids:
            return ids.get(number, number)
        if key in _OPTIONAL:
            other = fallback.get(key)
            return other if type(other) is int else _MISSING
        raise WeightspaceError(
            f"{path} sets token {number} as {key}, and the output has no such token. Expected a tokenizer that "
            "contains it: set `tokenizer: {source: union}`."
        )

    return new_id


def _map_ids(part: Any, new_id: Callable[[str, int], int]) -> None:
    """Replace the token ids in a section of a configuration, in place."""
    for key, value in part.items():
        if _ID.fullmatch(key) and not isinstance(value, bool):
            part[key] = _mapped(key, value, new_id)


def _mapped(key: str, value: Any, new_id: Callable[[str, int], int]) -> Any:
    """Return the output's ids for an id or a nested list of ids; None for tokens that the output lacks."""
    if type(value) is int:
        number = new_id(key, value)
        return None if number == _MISSING else number
    if isinstance(value, dict):
        return {name: _mapped(key, entry, new_id) for name, entry in value.items()}
    if not isinstance(value, list):
        return value
    if key == "forced_decoder_ids":  # pairs of a position in the text and an id
        return [[pair[0], _mapped(key, pair[1], new_id)] if isinstance(pair, list) else pair for pair in value]
    entries = [_mapped(key, entry, new_id) for entry in value]
    return [entry for entry in entries if entry is not None] or None
