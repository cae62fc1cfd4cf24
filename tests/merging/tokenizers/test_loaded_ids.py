"""The output's tokens have the ids on loading that their rows have, whatever the sources' files look like."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizer_folders import ids, llama, recipe, rows_of, save, tokenizer, with_tokens
from transformers import AutoTokenizer

from weightspace.checkpoints import load_checkpoint
from weightspace.errors import CheckpointError
from weightspace.merging import merge_files

UNION = "tokenizer: {source: union}"
WITH_TOKEN = "tokenizer: {source: base, tokens: {'<|x|>': {source: zero}}}"


def written(folder: Path) -> dict[str, int]:
    """Return token -> id as the file of a tokenizer says."""
    return ids(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))


def loaded(folder: Path) -> dict[str, int]:
    """Return token -> id as transformers loads a tokenizer."""
    return dict(AutoTokenizer.from_pretrained(folder).get_vocab())


def with_gap(content: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer with four unused ids before the last one of its vocabulary."""
    made = json.loads(json.dumps(content))
    vocab = made["model"]["vocab"]
    vocab[max(vocab, key=vocab.get)] += 4
    return made


def with_token_in_vocabulary(content: dict[str, Any], token: str) -> dict[str, Any]:
    """Return a tokenizer with one more token, added and in the vocabulary, so that ids may have gaps."""
    made = with_tokens(content, token)
    made["model"]["vocab"][token] = made["added_tokens"][-1]["id"]
    return made


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "wordpiece"])
@pytest.mark.parametrize("keys", [UNION, WITH_TOKEN])
def test_new_tokens_after_unused_ids_keep_their_ids(kind: str, keys: str, tmp_path: Path) -> None:
    content = with_gap(tokenizer(kind))
    other = with_token_in_vocabulary(content, "<|x|>")
    a = save(llama(max(ids(content).values()) + 1), content, tmp_path / "a")
    b = save(llama(max(ids(other).values()) + 1, seed=1), other, tmp_path / "b")
    merge_files(recipe(tmp_path, "linear", [a, b], keys, base=a), tmp_path / "out", warn=lambda line: None)
    assert loaded(tmp_path / "out") == written(tmp_path / "out")
    assert written(tmp_path / "out")["<|x|>"] == max(ids(content).values()) + 1
    if keys == UNION:
        row = rows_of(tmp_path / "out")["<|x|>"]
        assert torch.equal(row, load_checkpoint(b)["model.embed_tokens.weight"][-1])


def added_in_configuration(content: dict[str, Any], *tokens: str) -> dict[str, Any]:
    """Return the settings that add tokens to a tokenizer."""
    first = max(ids(content).values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {str(first + number): {"content": token, **plain} for number, token in enumerate(tokens)}


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "wordpiece", "unigram"])
@pytest.mark.parametrize("case", ["added", "ordinary", "tokens"])
def test_tokens_that_the_configuration_adds_keep_their_ids(kind: str, case: str, tmp_path: Path) -> None:
    content = tokenizer(kind)
    decoder = added_in_configuration(content, "<|im_start|>", "<|im_end|>")
    a = save(llama(len(ids(content)) + 2), content, tmp_path / "a", added_tokens_decoder=decoder)
    texts = ["zebras graze quietly", "zigzag quartz"] if case == "ordinary" else []
    other = with_tokens(tokenizer(kind, texts=texts) if texts else content, "<|x|>")
    b = save(llama(max(ids(other).values()) + 1, seed=1), other, tmp_path / "b")
    keys = WITH_TOKEN if case == "tokens" else UNION
    merge_files(recipe(tmp_path, "linear", [a, b], keys, base=a), tmp_path / "out", warn=lambda line: None)
    made, first = loaded(tmp_path / "out"), len(ids(content))
    assert made == written(tmp_path / "out")
    assert (
        (made["<|im_start|>"], made["<|im_end|>"])
        == (first, first + 1)
        == tuple(loaded(a)[token] for token in ("<|im_start|>", "<|im_end|>"))
    )
    assert len(made) == len(load_checkpoint(tmp_path / "out")["lm_head.weight"])


@pytest.mark.parametrize(
    "kinds", [("bytes", "metaspace"), ("metaspace", "bytes"), ("wordpiece", "bytes"), ("unigram", "wordpiece")]
)
@pytest.mark.parametrize("unlisted", [0, 1])
def test_a_token_that_is_added_in_one_kind_only_is_the_same_token(
    kinds: tuple[str, str], unlisted: int, tmp_path: Path
) -> None:
    contents = [tokenizer(kind) for kind in kinds]
    contents[unlisted]["added_tokens"] = [
        entry for entry in contents[unlisted]["added_tokens"] if entry["content"] not in ("<s>", "</s>")
    ]
    folders = [
        save(llama(len(ids(content)), seed=number), content, tmp_path / "ab"[number])
        for number, content in enumerate(contents)
    ]
    merge_files(recipe(tmp_path, "linear", folders, UNION), tmp_path / "out", warn=lambda line: None)
    rows, (first, second) = rows_of(tmp_path / "out"), map(rows_of, folders)
    for token in ("<s>", "</s>", "<unk>"):
        assert torch.equal(rows[token], (first[token] + second[token]) / 2)
    assert not any(token.endswith(("<s>", "</s>")) for token in rows.keys() - {"<s>", "</s>"})


def test_tokens_of_a_recipe_are_matched_inside_texts(tmp_path: Path) -> None:
    content = tokenizer("metaspace")
    a = save(llama(len(ids(content))), content, tmp_path / "a")
    merge_files(recipe(tmp_path, "linear", [a], WITH_TOKEN, base=a), tmp_path / "out", warn=lambda line: None)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("hello<|x|>")[-1] == "<|x|>"


@pytest.mark.parametrize("numbers", [(5, 6), (1, 0), (0, 0)])
def test_added_tokens_that_load_with_other_ids_are_refused(numbers: tuple[int, int], tmp_path: Path) -> None:
    content = with_tokens(tokenizer(), "<|x|>", "<|y|>")
    first = len(ids(content)) - 2
    for entry, number in zip(content["added_tokens"][-2:], numbers, strict=True):
        entry["id"] = first + number
    a = save(llama(len(ids(content)) + 8), content, tmp_path / "a")
    message = rf"added token '<\|[xy]\|>' has id \d+, but the tokenizers package loads it with id {first}"
    with pytest.raises(CheckpointError, match=message.replace(str(first), r"\d+")):
        merge_files(recipe(tmp_path, "linear", [a], UNION, base=a), tmp_path / "out")
    assert not (tmp_path / "out").exists()
