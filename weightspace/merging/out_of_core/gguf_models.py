"""Checks that the GGUF files of a merge fit the other models: their tokens, and their fields."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightspace.checkpoints.gguf.header import Header
from weightspace.checkpoints.quantised.settings import read_config
from weightspace.checkpoints.vocabulary import read_vocabulary
from weightspace.errors import WeightspaceError
from weightspace.escaping import one_line
from weightspace.merging.plan.gguf_output import gguf_header
from weightspace.merging.plan.plan import Member

#: Field of a family -> key of a configuration, for the hyperparameters that tensors' shapes don't show.
_KEYS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}

#: Field of the tokens, in the order of their ids.
_TOKENS = "tokenizer.ggml.tokens"


def check_gguf_models(members: Sequence[Member], notice: Callable[[str], None]) -> None:
    """Check that no token has different ids in a GGUF file and another model, and report hyperparameters that differ.

    Args:
        members: the models.
        notice: called with a line on each hyperparameter that differs.

    Raises:
        CheckpointError: a tokenizer is damaged.
        WeightspaceError: a token has different ids.
    """
    headers = {member.title: header for member in members if (header := gguf_header(member)) is not None}
    if not headers:
        return
    label, header = next(iter(headers.items()))
    known = _tokens(header)
    for other, theirs in list(headers.items())[1:]:
        _check(label, known, other, _tokens(theirs))
        for line in _differences(label, header, other, theirs):
            notice(line)
    for member in members:
        folder = member.contents.path
        if folder.is_dir() and member.plan is None:
            _check(label, known, member.title, read_vocabulary(folder).rows)
            for line in _config_differences(label, header, member.title, read_config(folder)):
                notice(line)


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
        f"{one_line(key)} is {repr(own)[:80]} in {label} and {repr(value)[:80]} in {other}."
        for key, (own, value) in pairs.items()
        if own != value
    ]


def _config_differences(label: str, header: Header, other: str, config: Mapping[str, Any]) -> list[str]:
    """Return lines on the hyperparameters that differ between a file and the configuration of a folder."""
    parts = [config.get(key) for key in ("text_config", "rope_parameters")]
    known = {**config, **{key: value for part in parts if isinstance(part, Mapping) for key, value in part.items()}}
    lines = []
    for key, name in _KEYS.items():
        key = f"{header.value('general.architecture')}.{key}"
        own, value = _number(header.value(key)), _number(known.get(name))
        if own is not None and value is not None and not math.isclose(own, value, rel_tol=1e-6):
            lines.append(f"{one_line(key)} is {own:g} in {label}, and {name} is {value:g} in {other}.")
    return lines


def _number(value: Any) -> float | None:
    """Return a value as a float, or None if it is no finite number."""
    return float(value) if isinstance(value, int | float) and abs(value) < sys.float_info.max else None
