"""Against mergekit 0.1.5: the rows of every token, for union, base, a model, single tokens and padding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import error
from tokenizer_folders import ids

import weightspace as ws
from weightspace.merging import merge_files

FOLDER = Path(__file__).parents[2] / "data" / "conformance" / "tokenizers"
CASES = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_rows_are_those_of_mergekit_token_by_token(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    merge_files(case["config"], tmp_path / "out")
    merged, expected = ws.load_checkpoint(tmp_path / "out"), ws.load_checkpoint(FOLDER / case["expected"])
    content = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    found = ids(content)
    assert found.keys() == case["ids"].keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == case["vocab_size"]
    tokens = sorted(found)
    tolerance = 2e-6 if case["dtype"] == "fp32" else 2**-6
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name not in expected:
            assert name not in merged
            continue
        assert merged[name].shape == expected[name].shape
        assert merged[name].dtype == expected[name].dtype
        own = merged[name][[found[token] for token in tokens]]
        theirs = expected[name][[case["ids"][token] for token in tokens]]
        for token, row, other in zip(tokens, own, theirs, strict=True):
            assert error(row, other) <= tolerance or torch.equal(row, other), (name, token)
        padding, their_padding = merged[name][len(tokens) :], expected[name][len(tokens) :]
        assert not len(padding) or error(padding, their_padding) <= max(tolerance, 1e-5)


def test_the_cases_cover_all_keys() -> None:
    assert {case["id"].partition(".")[0] for case in CASES} >= {
        *("union", "union_three", "union_with_base", "union_slerp", "tied", "base", "base_source_key", "model"),
        *("padding", "padded_rows", "tokens", "tokens_of_model"),
    }
