"""Tokens of the models of a merge: one id for each, by whatever files tell it; what cannot be compared is reported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging import merge_files


def network(value: float, prefix: str = "") -> StateDict:
    names = ("embed.weight", "layers.0.weight", "layers.1.weight", "head.weight")
    return {f"{prefix}{name}": torch.full((2, 2), value) for name in names}


def folders(folder: Path, beside: dict[str, dict[str, Any]]) -> list[Path]:
    """Write a small model per name, with JSON files beside its weights."""
    for number, (name, contents) in enumerate(beside.items()):
        ws.save_checkpoint(network(float(number)), folder / name)
        for file, content in contents.items():
            (folder / name / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return [folder / name for name in beside]


def tokenizer(**ids: int) -> dict[str, Any]:
    added = [{"id": number, "content": token} for token, number in ids.items()]
    return {"model": {"vocab": {"x": 0, "y": 1}, "merges": []}, "added_tokens": added}


MOVED: dict[str, tuple[str, Any, Any]] = {
    "added tokens": ("tokenizer.json", tokenizer(start=2, end=3), tokenizer(end=2, start=3)),
    "the vocabulary": ("vocab.json", {"x": 0, "y": 1}, {"x": 1, "y": 0}),
    "WordPiece": ("vocab.txt", "[PAD]\nx\ny", "[PAD]\ny\nx"),
    "added_tokens.json": ("added_tokens.json", {"start": 5}, {"start": 6}),
    "the tokenizer's configuration": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"5": {"content": "start"}}},
        {"added_tokens_decoder": {"6": {"content": "start"}}},
    ),
}


@pytest.mark.parametrize("case", MOVED)
def test_a_token_with_two_ids_is_refused(case: str, tmp_path: Path) -> None:
    file, one, other = MOVED[case]
    a, b = folders(tmp_path, {"a": {file: one}, "b": {file: other}})
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}]\n")
    with pytest.raises(WeightspaceError, match=r"has id . in a and . in b.*`tokenizer: \{source: union\}`"):
        merge_files(recipe, tmp_path / "out", dry_run=True)


def test_two_fine_tunes_that_move_a_token_are_refused_although_their_base_lacks_it(tmp_path: Path) -> None:
    base, a, b = folders(
        tmp_path,
        {
            "base": {"tokenizer.json": tokenizer()},
            "a": {"tokenizer.json": tokenizer(start=2)},
            "b": {"tokenizer.json": tokenizer(start=3)},
        },
    )
    with pytest.raises(WeightspaceError, match="'start' has id 2 in a and 3 in b"):
        merge_files([a, b], tmp_path / "out", method="task_arithmetic", base=base, dry_run=True)


TOLD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a token of one alone": (
        {"tokenizer.json": tokenizer()},
        {"tokenizer.json": tokenizer(start=2)},
        r"b has 1 tokens that a lacks \(tokenizer.json\): 'start' \(2\)",
    ),
    "no tokenizer": ({"tokenizer.json": tokenizer()}, {}, r"b \(no tokenizer\) cannot be compared"),
    "other kinds of files": ({"vocab.txt": "x\ny"}, {"a.tiktoken": "eA== 0"}, "cannot be compared"),
    "what is added alone": (
        {"tokenizer.json": tokenizer(start=2)},
        {"a.tiktoken": "eA== 0", "added_tokens.json": {"start": 2}},
        "cannot be compared",
    ),
    "how text is split": (
        {"tokenizer.json": {**tokenizer(), "pre_tokenizer": {"type": "ByteLevel"}}},
        {"tokenizer.json": tokenizer()},
        "differently: pre_tokenizer differs",
    ),
    "RWKV's vocabulary": ({"rwkv_vocab.txt": "1 'a' 1"}, {"rwkv_vocab.txt": "2 'a' 1"}, "rwkv_vocab.txt differs"),
    "bytes": ({"tekken.json": "1"}, {"tekken.json": "2"}, "tekken.json differs"),
    "merges": (
        {"vocab.json": {"x": 0}, "merges.txt": "#version: 0.2\nx y"},
        {"vocab.json": {"x": 0}, "merges.txt": "#version: 0.2\ny x"},
        "merges.txt of b and a tokenize text",
    ),
}


#: Folders that keep one vocabulary in files of other kinds or forms.
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fast and slow": (
        {"tokenizer.json": tokenizer(start=2)},
        {"vocab.json": {"x": 0, "y": 1}, "merges.txt": "#version: 0.2\n", "added_tokens.json": {"start": 2}},
    ),
    "added in the configuration": (
        {"tokenizer.json": tokenizer(start=2)},
        {"tokenizer.json": tokenizer(), "tokenizer_config.json": {"added_tokens_decoder": {"2": {"content": "start"}}}},
    ),
    "fast and WordPiece": ({"tokenizer.json": tokenizer()}, {"vocab.txt": "x\ny\n"}),
    "ends of lines": ({"vocab.txt": "x\ny"}, {"vocab.txt": "x\r\ny\r\n"}),
    "an empty line": (
        {"vocab.json": {"x": 0}, "merges.txt": "#version: 0.2\nx y\n"},
        {"vocab.json": {"x": 0}, "merges.txt": "x y\n\n"},
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_one_vocabulary_in_other_files_is_no_difference(case: str, tmp_path: Path) -> None:
    one, other = SAME[case]
    for index, files in enumerate([(one, other), (other, one)]):
        paths = folders(tmp_path / str(index), {"a": files[0], "b": files[1]})
        assert merge_files(paths, tmp_path / "out", dry_run=True).warnings == ()


#: The same, with a token at another id.
APART: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fast and slow": (
        {"tokenizer.json": tokenizer(start=2, end=3)},
        {"vocab.json": {"x": 0, "y": 1}, "added_tokens.json": {"start": 3, "end": 2}},
    ),
    "added in the configuration": (
        {"tokenizer.json": tokenizer(start=2)},
        {"tokenizer.json": tokenizer(), "tokenizer_config.json": {"added_tokens_decoder": {"3": {"content": "start"}}}},
    ),
    "fast and WordPiece": ({"tokenizer.json": tokenizer()}, {"vocab.txt": "y\nx\n"}),
    "two slow ones": ({"vocab.txt": "x\ny"}, {"vocab.json": {"x": 1}}),
    "beside SentencePiece": (
        {"tokenizer.json": tokenizer(start=2)},
        {"a.tiktoken": "eA== 0", "added_tokens.json": {"start": 3}},
    ),
}


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("turned", [False, True])
def test_a_token_with_two_ids_in_files_of_two_kinds_is_refused(case: str, turned: bool, tmp_path: Path) -> None:
    one, other = APART[case][::-1] if turned else APART[case]
    with pytest.raises(WeightspaceError, match=r"has id \d in a and \d in b"):
        merge_files(folders(tmp_path, {"a": one, "b": other}), tmp_path / "out", dry_run=True)


def test_a_longer_vocabulary_has_a_token_more(tmp_path: Path) -> None:
    paths = folders(tmp_path, {"a": {"vocab.txt": "x\ny\n"}, "b": {"vocab.txt": "x\ny\nz\n"}})
    (line,) = merge_files(paths, tmp_path / "out", dry_run=True).warnings
    assert "b has 1 tokens that a lacks (vocab.txt): 'z' (2)" in line


@pytest.mark.parametrize("other", ["1", "2"])
def test_a_tokenizer_that_nobody_can_read_is_copied_only_where_all_have_it(other: str, tmp_path: Path) -> None:
    a, b = folders(tmp_path, {"a": {"tekken.json": "1"}, "b": {"tekken.json": other}})
    recipe = tmp_path / "r.yml"
    models = f"models: [{{model: {a}}}, {{model: {b}}}]"
    recipe.write_text(f"merge_method: linear\nbase_model: {a}\ntokenizer_source: base\n{models}\n")
    if other == "1":
        (line,) = merge_files(recipe, tmp_path / "out").warnings
        assert "All models share the tokenizer of" in line
        assert (tmp_path / "out" / "tekken.json").read_text() == "1"
        return
    with pytest.raises(WeightspaceError, match=r"no tokenizer\.json, and transformers cannot read its tokenizer"):
        merge_files(recipe, tmp_path / "out", dry_run=True)


@pytest.mark.parametrize("case", TOLD)
def test_tokens_of_one_model_and_incomparable_ones_are_warned_about(case: str, tmp_path: Path) -> None:
    one, other, message = TOLD[case]
    report = merge_files(folders(tmp_path, {"a": one, "b": other}), tmp_path / "out", dry_run=True)
    assert any(re.search(message, line) for line in report.warnings), report.warnings


def test_a_tokenizer_that_was_saved_with_an_adapter_is_compared(tmp_path: Path) -> None:
    (model,) = folders(tmp_path, {"a": {"tokenizer.json": tokenizer(start=2, end=3)}})
    adapter = tmp_path / "adapter"
    names = ("base_model.model.embed.lora_A.weight", "base_model.model.embed.lora_B.weight")
    adapter.mkdir()
    ws.save_checkpoint({name: torch.ones(2, 2) for name in names}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    merge_files([f"{model}+{adapter}"], tmp_path / "out", method="passthrough")
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer(end=2, start=3)))
    with pytest.raises(WeightspaceError, match=r"'start' has id 2 in .* and 3 in the adapter adapter"):
        merge_files([f"{model}+{adapter}"], tmp_path / "out", method="passthrough")
