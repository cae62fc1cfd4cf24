"""Tokenizer vocabularies: token -> id, for each tokenizer file in a folder.

Files of the same kind are comparable between folders; a SentencePiece model and a ``tokenizer.json`` may number tokens
from different starts. Files in unknown formats are compared by their bytes.
"""

from __future__ import annotations

import base64
import filecmp
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.companion_files import is_tokenizer
from weightspace.checkpoints.json_file import read_json_object
from weightspace.errors import CheckpointError

#: Token -> id.
Tokens: TypeAlias = dict[str, int]

#: Files with tokenizer text or options but no ids.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template*", "tokenization_*.py")

#: Maximum number of digits of an id.
_MAX_DIGITS = 20

#: File names that can only be tokenizer models.
_MODELS = ("tokenizer.", "spiece.", "sentencepiece.", "spm.")

#: Start of a tiktoken line, and maximum length of one in bytes.
_TIKTOKEN, _LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n"), 2**16

#: Files with a complete vocabulary of embedding rows, in increasing order of precedence, and with added tokens.
_WHOLE = ("vocab.txt", "vocab.json", "tokenizer.json")
_ADDED = ("added_tokens.json", "added_tokens_decoder")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a folder.

    Attributes:
        tokens: file name -> its tokens and their ids.
        merges: file name -> digest of the order in which byte pairs are merged.
        others: name of a file in an unknown format -> digest of its bytes.
        rules: rules by which text is split before tokens are looked up: key of ``tokenizer.json`` -> digest.
    """

    tokens: Mapping[str, Tokens]
    merges: Mapping[str, str]
    others: Mapping[str, str]
    rules: Mapping[str, str]

    @property
    def rows(self) -> Tokens:
        """The tokens whose ids are rows of the embedding, combined from all files that list them."""
        return {token: number for kind in (*_ADDED, *_WHOLE) for token, number in self.tokens.get(kind, {}).items()}

    @property
    def row_files(self) -> list[str]:
        """The files that ``rows`` come from."""
        return [kind for kind in self.tokens if kind in (*_ADDED, *_WHOLE)]

    @property
    def is_whole(self) -> bool:
        """Whether ``rows`` holds all tokens, not only those added to a model in another file."""
        return any(kind in self.tokens for kind in _WHOLE)

    @property
    def is_empty(self) -> bool:
        """Whether the folder has no tokenizer."""
        return not self.tokens and not self.others


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokens of a folder; empty if it has no tokenizer.

    Raises:
        CheckpointError: a file is damaged.
    """
    tokens: dict[str, Tokens] = {}
    merges: dict[str, str] = {}
    others: dict[str, str] = {}
    rules: dict[str, str] = {}
    for path in _files(folder):
        reader = _reader(path.name)
        if path.name == "tokenizer.json":
            content = read_json_object(path)
            tokens[path.name] = tokens_of_json(content, path)
            merges[path.name] = _digest_of_merges(_merges(content, path))
            rules = {key: _digest(content[key]) for key in ("normalizer", "pre_tokenizer") if content.get(key)}
        elif path.name == "tokenizer_config.json":
            if added := added_in_configuration(read_json_object(path), path):
                tokens["added_tokens_decoder"] = added
        elif path.name == "merges.txt":
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            merges[path.name] = _digest_of_merges([line for line in lines if line and not line.startswith("#version")])
        elif reader is not None and (known := _known_tokens(path, reader)) is not None:
            tokens[path.name] = known
        elif not any(Path(path.name).match(pattern) for pattern in _SETTINGS):
            others[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return Vocabulary(tokens, merges, others, rules)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a path is a folder that holds files of a tokenizer."""
    return folder.is_dir() and bool(_files(folder))


def same_tokenizer(one: Path, other: Path) -> bool:
    """Return whether two folders have the same tokenizer files, byte by byte."""
    files = [{path.name: path for path in _files(folder)} for folder in (one, other)]
    return files[0].keys() == files[1].keys() and all(
        filecmp.cmp(path, files[1][name], shallow=False) for name, path in files[0].items()
    )


def _files(folder: Path) -> list[Path]:
    """Return the tokenizer files of a folder."""
    with one_line_errors(folder, "read"):
        return sorted(path for path in folder.iterdir() if is_tokenizer(path.name) and path.is_file())


def _reader(name: str) -> Callable[[Path], Tokens] | None:
    """Return the function that reads the tokens of a file of this name, if any."""
    if name in ("vocab.json", "added_tokens.json", "encoder.json"):
        return _of_json
    if name == "vocab.txt":
        return _of_lines
    if name == "tekken.json":
        return _of_tekken
    if name.startswith("tokenizer.model") or name.endswith((".model", ".spm")):
        return _of_model
    if name.endswith(".tiktoken"):
        return _of_tiktoken
    return None


def _known_tokens(path: Path, reader: Callable[[Path], Tokens]) -> Tokens | None:
    """Return the tokens of a file, or None if it only has the name of a vocabulary file.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return reader(path)
    except CheckpointError:
        if path.name == "tekken.json" or (path.suffix == ".model" and not path.name.startswith(_MODELS)):
            return None  # an unknown version of Mistral's format, or a truecaser
        raise


def _model(content: Mapping[str, Any]) -> Mapping[str, Any]:
    model = content.get("model")
    return model if isinstance(model, dict) else {}


def _merges(content: Mapping[str, Any], path: Path) -> list[Any]:
    """Return the byte-pair merges of a model; empty if it has none."""
    merges = _model(content).get("merges") or []
    if not isinstance(merges, list):
        raise CheckpointError(
            f"{path} is not a tokenizer: the merges of its model are {str(merges)[:40]}, expected a list."
        )
    return merges


def tokens_of_json(content: Mapping[str, Any], path: Path) -> Tokens:
    """Return the tokens of a ``tokenizer.json``: those of its model and its added tokens.

    Args:
        content: content of the file.
        path: path of the file, for errors.

    Raises:
        CheckpointError: the content is not that of a tokenizer.
    """
    listed = _model(content).get("vocab", {})
    if isinstance(listed, list):  # unigram models: token and score
        if not all(isinstance(pair, list) and pair and isinstance(pair[0], str) for pair in listed):
            raise CheckpointError(
                f"{path} is not a tokenizer: expected pairs of token and score in the vocab of its model."
            )
        listed = {pair[0]: index for index, pair in enumerate(listed)}
    added = content.get("added_tokens") or []
    if not isinstance(listed, dict) or not isinstance(added, list) or not all(isinstance(one, dict) for one in added):
        raise CheckpointError(f"{path} is not a tokenizer: expected a model with a vocab, and a list of added_tokens.")
    return _checked({**listed, **{str(one.get("content")): one.get("id") for one in added}}, path)


def added_in_configuration(content: Mapping[str, Any], path: Path) -> Tokens:
    """Return the tokens added by a tokenizer's configuration.

    Args:
        content: content of ``tokenizer_config.json``.
        path: path of the file, for errors.

    Raises:
        CheckpointError: the configuration is damaged.
    """
    decoder = content.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(isinstance(one, dict) for one in decoder.values()):
        raise CheckpointError(f"{path}: added_tokens_decoder must map ids to tokens, found another form.")
    pairs = {
        str(one.get("content")): int(number)
        for number, one in decoder.items()
        if number.isdecimal() and len(number) < _MAX_DIGITS
    }
    return _checked(pairs, path)


def _of_json(path: Path) -> Tokens:
    """Return the tokens of a JSON object; nested vocabularies of several languages are kept by language."""
    content = read_json_object(path)
    if content and all(isinstance(value, dict) for value in content.values()):
        content = {
            f"{language}/{token}": number for language, part in content.items() for token, number in part.items()
        }
    return _checked(content, path)


def _of_lines(path: Path) -> Tokens:
    """Return the tokens of a WordPiece file: one token per line, whose number is the id."""
    with one_line_errors(path, "read"):
        text = path.read_bytes().decode("utf-8", "replace")
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return {token: number for number, token in enumerate(lines)}


def _of_tekken(path: Path) -> Tokens:
    """Return the tokens of Mistral's format: a list by rank, with ids after those of the special tokens."""
    content = read_json_object(path)
    settings, specials = content.get("config"), content.get("special_tokens") or []
    listed = content.get("vocab")
    if not isinstance(settings, dict) or not all(isinstance(part, list) for part in (listed, specials)):
        raise CheckpointError(f"{path} is not a Mistral tokenizer: expected a config, a vocab and special_tokens.")
    first = settings.get("default_num_special_tokens", 0)
    pairs: dict[str, Any] = {}
    for entries, key, start in ((specials, "token_str", 0), (listed, "token_bytes", first)):
        for entry in entries or []:
            rank = entry.get("rank") if isinstance(entry, dict) else None
            if type(rank) is not int or type(start) is not int:
                raise CheckpointError(f"{path}: expected a rank with every token, found {str(entry)[:60]!r}.")
            pairs[str(entry.get(key))] = start + rank
    return _checked(pairs, path)


def _of_model(path: Path) -> Tokens:
    """Return the tokens of a file in the SentencePiece or, as for Llama 3, the tiktoken format."""
    with one_line_errors(path, "read"), open(path, "rb") as file:
        beginning = file.read(_LINE)
    if _TIKTOKEN.match(beginning):
        return _of_tiktoken(path)
    return _of_sentencepiece(path)


def _of_tiktoken(path: Path) -> Tokens:
    """Return the tokens of a file of base64 tokens and ranks."""
    tokens: dict[str, Any] = {}
    with one_line_errors(path, "read"):
        lines = path.read_bytes().splitlines()
    for line in filter(None, lines):
        token, _, rank = line.partition(b" ")
        try:
            tokens[base64.b64decode(token, validate=True).decode("latin-1")] = int(rank)
        except ValueError:
            raise CheckpointError(
                f"{path}: expected lines of a base64 token and its rank, found {line[:40]!r}."
            ) from None
    return tokens


def _of_sentencepiece(path: Path) -> Tokens:
    """Return the pieces of a SentencePiece model, which is a protocol buffer: field 1 repeats a piece."""
    with one_line_errors(path, "read"):
        content = path.read_bytes()
    try:
        pieces = [
            next(text for number, text in _fields(piece) if number == 1).decode("utf-8", "replace")
            for number, piece in _fields(content)
            if number == 1
        ]
    except (IndexError, StopIteration, ValueError):
        raise CheckpointError(f"{path} is not a SentencePiece model, or is damaged. Copy it again.") from None
    if not pieces:
        raise CheckpointError(f"{path} is not a SentencePiece model: it has no pieces. Copy it again.")
    return {piece: index for index, piece in enumerate(pieces)}


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each field of a protocol buffer; fields without a length are empty.

    Source:
        https://protobuf.dev/programming-guides/encoding
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
            yield tag >> 3, b""
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            yield tag >> 3, b""
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("truncated")
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            raise ValueError("unknown wire type")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the varint at an offset, and the offset after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _checked(pairs: Mapping[str, Any], path: Path) -> Tokens:
    """Return token -> id after checking that all ids are integers."""
    if not {int}.issuperset(map(type, pairs.values())):
        token, number = next((token, number) for token, number in pairs.items() if type(number) is not int)
        raise CheckpointError(f"{path}: the id of token {token[:40]!r} is {str(number)[:40]!r}, expected a number.")
    return dict(pairs)


def _digest_of_merges(merges: Sequence[Any]) -> str:
    """Return a digest of byte pairs, which are stored as ``"a b"`` or as ``["a", "b"]``."""
    pairs = [" ".join(map(str, pair)) if isinstance(pair, list) else str(pair) for pair in merges]
    return _digest(pairs)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
