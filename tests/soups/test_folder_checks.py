"""Soups of folders: token ids must agree, and configurations and modules that differ are warned of."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.soups import model_stock_soup

VOCABULARY = {"[PAD]": 0, "cat": 1, "dog": 2}
SWAPPED = {"[PAD]": 0, "cat": 2, "dog": 1}


def folder(path: Path, seed: int, *, tokens: dict[str, int] = VOCABULARY, **config: Any) -> Path:
    """Write a model with a vocabulary of three tokens, and return its folder."""
    generator = torch.Generator().manual_seed(seed)
    ws.save_checkpoint({"embeddings.weight": torch.randn(3, 4, generator=generator)}, path)
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 3, **config}))
    (path / "vocab.json").write_text(json.dumps(tokens))
    return path


def test_tokens_with_different_ids_are_refused_by_every_soup_of_folders(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1), folder(tmp_path / "b", 2)
    other = folder(tmp_path / "other", 3, tokens=SWAPPED)
    message = r"'cat' has id 1 in .*a and 2 in .*other .*expected one id for each token"
    with pytest.raises(WeightspaceError, match=message):
        ws.uniform_soup([a, b, other])
    with pytest.raises(WeightspaceError, match=message):
        ws.greedy_soup([a, other], lambda state: 0.0)
    with pytest.raises(WeightspaceError, match=message):
        model_stock_soup([a, b], other)
    words = ["soup", str(a), str(other), "--recipe", "uniform", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.main, words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_configurations_that_differ_are_warned_of_once(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1), folder(tmp_path / "b", 2, hidden_act="relu")
    with pytest.warns(WeightspaceWarning, match='hidden_act "relu"') as found:
        ws.uniform_soup([a, b])
    assert len(found) == 1
    assert found[0].filename == __file__


def test_a_list_of_modules_that_differs_is_warned_of(tmp_path: Path) -> None:
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    paths = [folder(tmp_path / name, seed) for seed, name in enumerate("ab")]
    for path in paths:
        (path / "modules.json").write_text(json.dumps(modules))
        modules = [*modules, {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}]
    with pytest.warns(WeightspaceWarning, match=r"modules\.json of .*b differs from that of .*a, which is copied"):
        ws.uniform_soup(paths)


def test_equal_folders_files_and_state_dicts_give_no_warning(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1), folder(tmp_path / "b", 2)
    state = ws.load_checkpoint(a)
    ws.save_checkpoint(state, tmp_path / "c.safetensors")
    (a / "optimizer.pt").write_bytes(b"left out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ws.uniform_soup([a, b, tmp_path / "c.safetensors", state])
