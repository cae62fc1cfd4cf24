"""Tokens and their ids, by each kind of file that tokenizers keep them in."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from weightspace.checkpoints.vocabulary import read_vocabulary, same_tokenizer
from weightspace.errors import CheckpointError


def varint(value: int) -> bytes:
    content = b""
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])


def sentencepiece(*pieces: str) -> bytes:
    """Encode pieces with scores as a SentencePiece model does, and a field that is skipped."""
    content = b""
    for piece in pieces:
        text = piece.encode()
        entry = b"\x0a" + varint(len(text)) + text + b"\x15" + b"\x00\x00\x80\xbf" + b"\x18\x01"
        content += b"\x0a" + varint(len(entry)) + entry
    return content + b"\x12\x02\x08\x01"


BPE = {
    "model": {"type": "BPE", "vocab": {"x": 0, "y": 1}, "merges": ["x y"]},
    "added_tokens": [{"id": 2, "content": "<s>"}],
}
UNIGRAM = {
    "model": {"type": "Unigram", "vocab": [["x", -1.0], ["y", -2.0]]},
    "added_tokens": [{"id": 2, "content": "<s>"}],
}

FILES: dict[str, tuple[str, bytes]] = {
    "tokenizer.json": ("tokenizer.json", json.dumps(BPE).encode()),
    "a unigram model": ("tokenizer.json", json.dumps(UNIGRAM).encode()),
    "vocab.json": ("vocab.json", b'{"x": 0, "y": 1, "<s>": 2}'),
    "vocab.txt": ("vocab.txt", b"x\ny\n<s>"),
    "vocab.txt, ended": ("vocab.txt", b"x\ny\n<s>\n"),
    "vocab.txt of Windows": ("vocab.txt", b"x\r\ny\r\n<s>\r\n"),
    "added_tokens.json": ("added_tokens.json", b'{"x": 0, "y": 1, "<s>": 2}'),
    "SentencePiece": ("tokenizer.model", sentencepiece("x", "y", "<s>")),
    "Marian's": ("source.spm", sentencepiece("x", "y", "<s>")),
    "GPT-2's own": ("encoder.json", b'{"x": 0, "y": 1, "<s>": 2}'),
    "Mistral's version 3": ("tokenizer.model.v3", sentencepiece("x", "y", "<s>")),
    "ChatGLM's": ("ice_text.model", sentencepiece("x", "y", "<s>")),
    "Llama 3's, of tiktoken": ("tokenizer.model", b"eA== 0\neQ== 1\nPHM+ 2\n"),
    "tiktoken": (
        "qwen.tiktoken",
        b"\n".join(base64.b64encode(t) + b" %d" % i for i, t in enumerate((b"x", b"y", b"<s>"))),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_tokens_are_read_with_their_ids(case: str, tmp_path: Path) -> None:
    name, content = FILES[case]
    (tmp_path / name).write_bytes(content)
    assert read_vocabulary(tmp_path).tokens == {name: {"x": 0, "y": 1, "<s>": 2}}


def test_tokens_of_tekken_follow_the_special_ones(tmp_path: Path) -> None:
    content = {
        "config": {"default_num_special_tokens": 2},
        "vocab": [{"rank": 0, "token_bytes": "eA=="}, {"rank": 1, "token_bytes": "eQ==", "token_str": "y"}],
        "special_tokens": [{"rank": 0, "token_str": "<s>"}, {"rank": 1, "token_str": "</s>"}],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    assert read_vocabulary(tmp_path).tokens == {"tekken.json": {"<s>": 0, "</s>": 1, "eA==": 2, "eQ==": 3}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("truecase.model", "the (10/12)"), ("tekken.json", '{"config": {}}'), ("tekken.json", "1")),
        ("tekken.json", '{"config": {}, "vocab": [{"rank": "0"}]}'),
    ],
)
def test_a_file_that_is_only_called_like_one_of_tokens_is_compared_by_its_bytes(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    assert list(read_vocabulary(tmp_path).others) == [name]


@pytest.mark.parametrize("content", [b"", b"\x12\x02\x08\x01"])
def test_a_tokenizer_without_tokens_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="no pieces"):
        read_vocabulary(tmp_path)


def test_empty_lines_merge_nothing(tmp_path: Path) -> None:
    digests = []
    for text in ("#version: 0.2\na b\n\n", "a b"):
        (tmp_path / "merges.txt").write_text(text)
        digests.append(read_vocabulary(tmp_path).merges["merges.txt"])
    assert digests[0] == digests[1]


def test_tokens_that_a_configuration_adds_are_read(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {"7": {"content": "<|im_start|>"}, "8": {"content": "<|im_end|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_vocabulary(tmp_path).tokens == {"added_tokens_decoder": {"<|im_start|>": 7, "<|im_end|>": 8}}


def test_languages_with_separate_vocabularies_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": {"a": 0}, "deu": {"a": 1}}))
    assert read_vocabulary(tmp_path).tokens == {"vocab.json": {"eng/a": 0, "deu/a": 1}}


def test_merges_are_equal_in_both_spellings(tmp_path: Path) -> None:
    digests = []
    for merges in (["x y", "xy z"], [["x", "y"], ["xy", "z"]], ["xy z", "x y"]):
        content: dict[str, Any] = {"model": {"vocab": {}, "merges": merges}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        digests.append(read_vocabulary(tmp_path).merges["tokenizer.json"])
    assert digests[0] == digests[1] != digests[2]


def test_a_file_in_no_known_format_is_compared_by_its_bytes(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tekken.json").write_text(text)
    vocabularies = [read_vocabulary(tmp_path / name) for name in "ab"]
    assert vocabularies[0].others != vocabularies[1].others
    assert not same_tokenizer(tmp_path / "a", tmp_path / "b")
    assert same_tokenizer(tmp_path / "a", tmp_path / "a")


def test_a_folder_without_a_tokenizer_is_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_vocabulary(tmp_path).is_empty


DAMAGED = {
    "an id that is a word": ("vocab.json", b'{"x": "zero"}'),
    "a list": ("vocab.json", b"[1, 2]"),
    "cut short": ("tokenizer.json", b'{"model": {'),
    "a vocabulary that is a number": ("tokenizer.json", b'{"model": {"vocab": 3}}'),
    "added tokens without a name": ("tokenizer.json", b'{"added_tokens": [3]}'),
    "a truncated model": ("tokenizer.model", sentencepiece("x", "y")[:-12]),
    "no protocol buffer": ("tokenizer.model", b"\xff" * 40),
    "no rank": ("a.tiktoken", b"eA== x"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line(case: str, tmp_path: Path) -> None:
    name, content = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        read_vocabulary(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("merges", [2, True, float("inf"), "a b", {"a": "b"}])
def test_merges_that_are_no_list_are_refused(merges: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}, "merges": merges}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer: the merges"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 4300, "1" * 400, "٣" * 5000])
def test_ids_of_thousands_of_digits_are_none(number: str, tmp_path: Path) -> None:
    decoder = {"0": {"content": "a"}, number: {"content": "b"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert read_vocabulary(tmp_path).tokens == {"added_tokens_decoder": {"a": 0}}


@pytest.mark.parametrize("entry", [[[1], 0.5], [{"a": 1}, 0.5], [], [1, 0.5], "x", None])
def test_entries_of_a_unigram_model_that_are_no_pairs_are_refused(entry: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["x", 0.5], entry]}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer: expected pairs of token and score"):
        read_vocabulary(tmp_path)
