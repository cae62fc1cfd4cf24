"""``extract-lora`` and ``merge-adapters`` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import weightspace as ws
from weightspace import cli
from weightspace.lora import read_adapter


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normal: Callable[..., Tensor]) -> Path:
    """Return the working directory: a base, two fine-tunes of rank 2, one with a norm, and one with a counter."""
    monkeypatch.chdir(tmp_path)
    base = {"q.weight": normal(12, 10), "norm.weight": normal(12), "steps": torch.tensor(1)}
    ws.save_checkpoint(base, "base.safetensors")
    for name in "ab":
        tuned = base["q.weight"] + normal(12, 2) @ normal(2, 10)
        ws.save_checkpoint({**base, "q.weight": tuned}, f"{name}.safetensors")
    ws.save_checkpoint({**base, "q.weight": normal(12, 10), "norm.weight": normal(12)}, "norm.safetensors")
    ws.save_checkpoint({**base, "q.weight": normal(12, 10), "steps": torch.tensor(2)}, "counter.safetensors")
    return tmp_path


def test_extracted_adapters_merged_and_baked_in_are_the_sum(folder: Path) -> None:
    for name in "ab":
        done = run("extract-lora", "base.safetensors", f"{name}.safetensors", "--rank", "2", "-o", name, "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["error"] < 1e-5
        assert report["energy"] == pytest.approx(1)
        assert report["ranks"] == {"q.weight": 2}
    done = run("merge-adapters", "a", "b", "-m", "core_space", "--inner", "task_arithmetic", "-o", "ab", "--json")
    assert json.loads(done.stdout)["ranks"] == {"q.weight": 4}
    assert run("merge", "base.safetensors+ab", "-m", "passthrough", "-o", "m.safetensors").exit_code == 0
    base, a, b, m = (ws.load_checkpoint(f"{name}.safetensors")["q.weight"] for name in ("base", "a", "b", "m"))
    torch.testing.assert_close(m, a + b - base, rtol=1e-4, atol=1e-4)


def test_the_options_reach_the_merge(folder: Path) -> None:
    for name in "ab":
        run("extract-lora", "base.safetensors", f"{name}.safetensors", "--rank", "2", "-o", name)
    options = ("--inner", "ties", "--density", ".5", "--weights", ".5,.5", "--lambda", "2", "--no-normalize")
    result = run("merge-adapters", "a", "b", "-m", "core_space", *options, "-o", "merged")
    assert result.exit_code == 0, result.output
    files = ["merged/adapter_config.json", "merged/adapter_model.safetensors"]
    assert result.stdout.splitlines() == ["1 tensors, rank 4", *files]
    parameters = json.loads(ws.checkpoints.load_metadata("merged/adapter_model.safetensors")["parameters"])  # type: ignore[attr-defined]
    assert parameters == {
        "inner": "ties",
        "parameters": {"density": 0.5, "lambda": 2.0, "normalize": False},
        "weights": [0.5, 0.5],
    }
    assert read_adapter(folder / "merged").factors["q.weight"].scale == 1


def test_omitted_tensors_are_reported(folder: Path) -> None:
    result = run("extract-lora", "base.safetensors", "norm.safetensors", "--lenient", "-o", "n")
    assert result.exit_code == 0, result.output
    assert "left out: norm.weight" in result.stdout
    assert "kept whole" not in result.stdout


def test_norms_that_are_kept_whole_are_reported(folder: Path) -> None:
    result = run("extract-lora", "base.safetensors", "norm.safetensors", "-o", str(folder / "n"))
    assert result.exit_code == 0, result.output
    assert "kept whole: 1 norms and biases (norm.weight)" in result.stdout
    found = json.loads(run("extract-lora", "base.safetensors", "norm.safetensors", "-o", "n", "--json").stdout)
    assert (found["saved"], found["left_out"]) == (["norm.weight"], [])
    refused = run("merge-adapters", "n", "-o", "m")
    assert "modules_to_save" in refused.stderr


MISTAKES = {
    "a counter that differs": ("extract-lora", "base.safetensors", "counter.safetensors", "-o", "out"),
    "nothing differs": ("extract-lora", "base.safetensors", "base.safetensors", "-o", "out"),
    "no such checkpoint": ("extract-lora", "base.safetensors", "nowhere.safetensors", "-o", "out"),
    "no such adapter": ("merge-adapters", "nowhere", "-o", "out"),
    "weights that are no numbers": ("merge-adapters", "nowhere", "--weights", "x", "-o", "out"),
    "an unknown method": ("merge-adapters", "nowhere", "-m", "knot", "-o", "out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(mistake: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = run(*MISTAKES[mistake])
    assert result.exit_code == 2, result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert "Traceback" not in result.output
    assert sorted(folder.iterdir()) == before
