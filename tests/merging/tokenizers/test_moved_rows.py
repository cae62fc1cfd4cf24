"""Models whose tokens have other ids, merged by token: from files to files, and loaded by transformers."""

from pathlib import Path

import pytest
import torch
from tokenizer_folders import (
    TEXTS,
    ids,
    llama,
    permuted,
    recipe,
    rows_of,
    save,
    tokenizer,
    with_moved_rows,
    with_tokens,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightspace.merging import ExecutionOptions, merge_files

UNION = "tokenizer: {source: union}"


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "wordpiece", "unigram"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_merged_with_itself_under_a_permuted_vocabulary_is_itself(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    content = tokenizer(kind)
    moved, old = permuted(content)
    model = llama(len(ids(content)), tied=tied)
    a = save(model, content, tmp_path / "a")
    b = save(with_moved_rows(model, old), moved, tmp_path / "b")
    merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    made, source = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", a))
    for text in TEXTS:
        tokens = made(text, return_tensors="pt").input_ids
        assert torch.equal(tokens, source(text, return_tensors="pt").input_ids)
        assert torch.allclose(merged(tokens).logits, model(tokens).logits, atol=1e-6)


def test_a_union_has_the_tokens_of_all_with_their_rows(tmp_path: Path) -> None:
    content = tokenizer()
    moved, _ = permuted(content)
    count = len(ids(content))
    a = save(llama(count + 1), with_tokens(content, "<|a|>"), tmp_path / "a")
    b = save(llama(count + 2, seed=1), with_tokens(moved, "<|b|>", "<|a|>"), tmp_path / "b")
    report = merge_files(recipe(tmp_path, "linear", [a, b], UNION), tmp_path / "out")
    assert (report.tokens, report.new_tokens) == (count + 2, 1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        first, second, merged = (rows_of(folder, name) for folder in (a, b, tmp_path / "out"))
        assert merged.keys() == first.keys() | second.keys()
        for token, row in merged.items():
            expected = (first.get(token, second[token]) + second[token]) / 2
            assert torch.equal(row, expected), token
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == count + 2 == len(made)
    assert made.tokenize("hello<|b|>") == [*AutoTokenizer.from_pretrained(a).tokenize("hello"), "<|b|>"]


def test_all_executors_write_the_same_bytes(tmp_path: Path) -> None:
    content = tokenizer()
    moved, _ = permuted(content)
    count = len(ids(content))
    a = save(llama(count), content, tmp_path / "a")
    b = save(llama(count + 1, seed=1), with_tokens(moved, "<|b|>"), tmp_path / "b")
    path = recipe(tmp_path, "ties", [a, b], f"{UNION}\nparameters: {{density: 0.5}}", base=a)
    written = []
    for executor in ("threads", "processes"):
        out = tmp_path / "out" / executor / "merged"
        out.parent.mkdir(parents=True)
        merge_files(
            path, out, execution=ExecutionOptions(executor=executor, workers=2 if executor != "threads" else None)
        )
        written.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    assert written[0] == written[1]
