"""``weightspace match`` with three checkpoints: what the library finds, in files; mistakes are one line."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import weightspace as ws
from weightspace import cli

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""
MODELS = ("a.safetensors", "b.safetensors", "c.pt")
NETWORK = ("--network", "model.py:build", "--input", "2,6")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["match", *arguments])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a model file and three checkpoints of it into the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    for seed, path in enumerate(MODELS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
            ws.save_checkpoint(nn.Sequential(*layers).state_dict(), path)


@pytest.mark.parametrize("method", ["merge-many", "cycle-consistent"])
def test_permutations_and_the_merged_network_are_those_of_the_library(method: str) -> None:
    result = run(*MODELS, "--method", method, *NETWORK, "--seed", "3", "-o", "p", "--merged", "m.safetensors", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    spec = ws.derive_spec(module, (torch.zeros(2, 6),))
    function = {"merge-many": ws.merge_many, "cycle-consistent": ws.cycle_consistent}[method]
    expected = function(spec, [ws.load_checkpoint(path) for path in MODELS], seed=3)
    assert report["permutations"] == ["p/1-a.safetensors", "p/2-b.safetensors", "p/3-c.safetensors"]
    assert [ws.Permutation.load(path, spec) for path in report["permutations"]] == list(expected.permutations)
    assert report["objective"] == list(expected.objective)
    assert (report["method"], report["seed"]) == (method, 3)
    assert report["seconds"] > 0
    merged = ws.load_checkpoint("m.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.merged.items())


def test_three_checkpoints_are_matched_by_merge_many_by_default() -> None:
    result = run(*MODELS, *NETWORK, "-o", "p", "--merged", "merged.pt")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "merged.pt"
    assert "merge-many: sweep" in result.stderr
    assert len(list(Path("p").iterdir())) == 3


MISTAKES = {
    "three for a method for two": (*MODELS, "--method", "weight-matching", *NETWORK, "-o", "p"),
    "a method that merges nothing": (*MODELS[:2], *NETWORK, "-o", "p.safetensors", "--merged", "m.pt"),
    "a file for several permutations": (*MODELS, *NETWORK, "-o", "p.safetensors"),
    "no task for a method that needs one": (*MODELS, "--method", "straight-through-many", *NETWORK, "-o", "p"),
    "a checkpoint that is missing": (*MODELS, "d.pt", *NETWORK, "-o", "p"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(mistake: str) -> None:
    before = sorted(Path().iterdir())
    result = run(*MISTAKES[mistake])
    assert result.exit_code == 2, result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert "Traceback" not in result.output
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before
