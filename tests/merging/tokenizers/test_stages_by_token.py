"""Recipes of several documents, and recipes inside recipes, whose models have other tokens."""

from pathlib import Path

import pytest
import torch
from tokenizer_folders import ids, llama, permuted, rows_of, save, tokenizer, with_tokens

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, MergeReport, merge_files, reproduce

FIRST = """
merge_method: linear
models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]
tokenizer: {source: union}
"""
SECOND = """
merge_method: linear
models: [{model: AB, parameters: {weight: 0.5}}, {model: c, parameters: {weight: 0.5}}]
tokenizer: {source: union}
"""
DOCUMENTS = f"name: ab{FIRST}---{SECOND.replace('AB', 'ab')}"


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = tokenizer()
    moved, _ = permuted(content)
    count = len(ids(content))
    save(llama(count + 1), with_tokens(content, "<|a|>"), tmp_path / "a")
    save(llama(count + 2, seed=1), with_tokens(moved, "<|b|>", "<|a|>"), tmp_path / "b")
    save(llama(count, seed=2), content, tmp_path / "c")


def merge(text: str, out: str, **options: Path) -> MergeReport:
    Path("recipe.yml").write_text(text)
    return merge_files("recipe.yml", out, execution=ExecutionOptions(fsync=False, **options))


def test_two_documents_equal_their_stages_run_by_hand(tmp_path: Path) -> None:
    merge(f"{FIRST}dtype: float32\n", "stage")
    merge(SECOND.replace("AB", "stage"), "by_hand")
    merge(DOCUMENTS, "documents")
    merge(DOCUMENTS, "kept", intermediate_dir=tmp_path / "stages")
    expected = ws.load_checkpoint("by_hand")
    for out in ("documents", "kept"):
        merged = ws.load_checkpoint(out)
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
        assert rows_of(Path(out)).keys() == rows_of(Path("by_hand")).keys()
    assert reproduce("documents").equal


def test_a_recipe_inside_a_recipe_moves_its_own_rows() -> None:
    inner = "".join(f"    {line}\n" for line in FIRST.strip().splitlines())
    merge(
        f"merge_method: linear\nbase_model: c\ntokenizer_source: base\nmodels:\n- model: c\n- model:\n{inner}"
        "parameters: {weight: 0.5}\n",
        "nested",
    )
    a, b, c, merged = (rows_of(Path(name)) for name in ("a", "b", "c", "nested"))
    assert merged.keys() == c.keys()
    for token, row in merged.items():
        assert torch.allclose(row, ((a[token] + b[token]) / 2 + c[token]) / 2, atol=1e-7), token


@pytest.mark.parametrize("text", [FIRST, DOCUMENTS.replace("tokenizer: {source: union}", "", 1)])
def test_without_the_key_other_numbers_of_rows_are_refused_and_the_key_is_named(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"`tokenizer: \{source: union\}` in a recipe merges them by token"):
        merge(text.replace("tokenizer: {source: union}", ""), "out")
    assert not Path("out").exists()
