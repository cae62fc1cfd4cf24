"""Another model's vocabulary on a model: exact where both know a token, and judged by the loss where they do not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizer_folders import ids, llama, rows_of, save, tokenizer, with_tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from weightspace.cli import main

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import merge_files
from weightspace.merging.tokenizers.approximation import mean_coefficients, nearest_coefficients, pursuit_coefficients
from weightspace.merging.transplant import TRANSPLANT_METHODS, transplant

TEXT = "the cat sat on the mat and the dog ate the hat of the man in the van that ran to the land of sand and tin. "


def trained(content: Mapping[str, Any], seed: int) -> nn.Module:
    """Return a small model that knows ``TEXT`` in the tokens of a tokenizer."""
    model = llama(len(ids(content)), seed=seed, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    data = tokens(content, TEXT * 3)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        loss = model(data[None, :64], labels=data[None, :64]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def tokens(content: Mapping[str, Any], text: str) -> Tensor:
    from tokenizers import Tokenizer

    return torch.tensor(Tokenizer.from_str(json.dumps(content)).encode(text).ids)


def loss(folder: Path) -> float:
    """Return the loss per character of a folder's model on ``TEXT``, in nats."""
    data = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids[:, :64]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder)
        return float(model(data, labels=data).loss) * data.shape[1] / len(TEXT)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a model of pieces of words, and one of a few more pieces."""
    folder = tmp_path_factory.mktemp("models")
    small, large = tokenizer(size=275, texts=[TEXT]), with_tokens(tokenizer(size=295, texts=[TEXT]), "<|x|>")
    return save(trained(small, 0), small, folder / "a"), save(trained(large, 1), large, folder / "b")


@pytest.mark.parametrize("method", TRANSPLANT_METHODS)
def test_a_transplant_copies_what_both_know_and_beats_rows_of_zeros(
    method: Any, models: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = models
    report = transplant(a, b, tmp_path / "out", method=method, neighbours=8)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        own, made = rows_of(a, name), rows_of(tmp_path / "out", name)
        assert made.keys() == rows_of(b).keys()
        assert all(torch.equal(made[token], row) for token, row in own.items())
        assert all(bool(row.any()) for token, row in made.items() if token not in own)
    assert report.shared == len(own)
    assert report.tokens == report.shared + report.approximated == len(made)
    made_by, source = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", b))
    assert made_by.encode(TEXT) == source.encode(TEXT)
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {a}}}]\ntokenizer_source: {b}\n")
    merge_files(recipe, tmp_path / "zeros")
    assert loss(tmp_path / "out") < loss(tmp_path / "zeros")
    kept = [name for name in ws.load_checkpoint(a) if "layers" in name]
    states = ws.load_checkpoint(a), ws.load_checkpoint(tmp_path / "out")
    assert all(torch.equal(states[0][name], states[1][name]) for name in kept)


def test_a_model_with_its_own_vocabulary_stays_as_it_is(models: tuple[Path, Path], tmp_path: Path) -> None:
    report = transplant(models[0], models[0], tmp_path / "out")
    assert report.approximated == 0
    states = ws.load_checkpoint(models[0]), ws.load_checkpoint(tmp_path / "out")
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", ["base", "union"])
def test_a_donor_may_be_named_like_a_key_word(
    name: str, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models[1], name)
    transplant(models[0], name, "out", method="subword")
    assert rows_of(tmp_path / "out").keys() == rows_of(models[1]).keys()


def test_subwords_are_those_of_the_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = models
    transplant(a, b, tmp_path / "out", method="subword")
    own, made = rows_of(a), rows_of(tmp_path / "out")
    token = next(token for token in made if token not in own and token.startswith("Ġ"))
    pieces = AutoTokenizer.from_pretrained(a).tokenize(token.replace("Ġ", " "))
    assert torch.allclose(made[token], torch.stack([own[piece] for piece in pieces]).mean(0), atol=1e-6)


def test_pursuit_finds_a_planted_combination() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(20, 64, generator=generator)
    targets = 2 * shared[[3, 4]] - 0.5 * shared[[11, 12]]
    indices, weights = pursuit_coefficients(targets, shared, 2)
    assert indices.tolist() == [[3, 11], [4, 12]]
    assert torch.allclose(weights, torch.tensor([[2, -0.5]] * 2), atol=1e-4)


def test_pursuit_of_more_steps_than_dims_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    shared, targets = torch.randn(9, 4, generator=generator), torch.randn(3, 4, generator=generator)
    shared[5] = shared[4]
    indices, weights = pursuit_coefficients(targets, shared, 50)
    assert indices.shape == (3, 4)
    assert np.allclose(torch.einsum("nk,nkd->nd", weights, shared[indices]), targets, atol=1e-3)


def test_the_nearest_token_is_the_token_itself() -> None:
    shared = torch.eye(5)
    indices, weights = nearest_coefficients(shared[:2], shared, 3)
    assert indices[:, 0].tolist() == [0, 1]
    assert torch.allclose(weights.sum(1), torch.ones(2))
    assert weights[:, 0].min() > 0.99


def test_a_token_without_subwords_gets_the_mean_of_all_rows() -> None:
    indices, weights = mean_coefficients([[], [1, 2], [9]], 5)
    assert indices.tolist() == [[-1, 0], [1, 2], [-1, 0]]
    assert weights.tolist() == [[1, 0], [0.5, 0.5], [1, 0]]


def test_the_command_tells_what_it_did(models: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = models
    arguments = ["transplant", str(a), "--tokenizer", str(b), "--method", "subword", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["approximated"] == len(ids(json.loads((b / "tokenizer.json").read_text()))) - said["shared"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    again = CliRunner().invoke(main, [*arguments[:4], "-o", str(tmp_path / "out2"), "-k", "0"])
    assert again.exit_code == 2


def test_mistakes_are_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = models
    with pytest.raises(WeightspaceError, match="Unknown method"):
        transplant(a, b, tmp_path / "out", method="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WeightspaceError, match="neighbours must be an integer"):
        transplant(a, b, tmp_path / "out", neighbours=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightspaceError):
        transplant(a, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
