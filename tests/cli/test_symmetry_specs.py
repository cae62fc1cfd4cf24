"""``weightspace spec --symmetry``, and commands that need permutations beside the spec that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli

NETWORK = ("--network", "network.py:build", "--input", "2,4")
CODE = """
from torch import nn

def build():
    layers = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    return nn.Sequential(*layers)
"""


def run(*args: str) -> Result:
    return CliRunner().invoke(cli.main, args, prog_name="weightspace")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("network.py").write_text(CODE)
    return tmp_path


def test_a_symmetry_spec_is_printed_saved_and_verified_again(folder: Path) -> None:
    result = run("spec", *NETWORK, "--symmetry", "full", "-o", "spec.yaml")
    assert result.exit_code == 0, result.output
    assert "layer.0: 8 units, orthogonal, fixes ones" in result.stdout
    assert "layer.2: 6 units, permuted with signs" in result.stdout
    assert "layer.4: 5 units, permuted\n" in result.stdout
    assert "fold: 1.weight and 1.bias into 2.weight" in result.stdout
    assert "layer.4: only permuted, because relu does not commute with rotations" in result.stdout
    assert "moving all at random changes the outputs" in result.stdout
    assert run("spec", "spec.yaml").stdout.splitlines() == result.stdout.splitlines()[:-1]
    assert run("spec", "spec.yaml", *NETWORK).exit_code == 0
    assert ws.SymmetrySpec.load("spec.yaml").kinds == {
        "layer.0": "orthogonal",
        "layer.2": "signed",
        "layer.4": "permutation",
    }


def test_signs_are_reported_as_json(folder: Path) -> None:
    report = json.loads(run("spec", *NETWORK, "--symmetry", "signed", "--json").stdout)
    assert report["kinds"] == {"layer.0": "permutation", "layer.2": "signed", "layer.4": "permutation"}
    assert report["fixes_ones"] == report["folds"] == []
    assert report["error"] < report["tolerance"] == 1e-10
    assert "kinds" not in json.loads(run("spec", *NETWORK, "--json").stdout)


@pytest.mark.parametrize(
    "line",
    [
        "match a.pt a.pt --spec spec.yaml -o p.safetensors",
        "match a.pt a.pt --spec spec.yaml --network network.py:build --input 2,4 -o p.safetensors",
        "permute a.pt element.safetensors --spec spec.yaml -o moved.pt",
        "merge a.pt a.pt --align weight-matching --spec spec.yaml -o merged.pt",
        "spectrum a.pt a.pt --matching weight-matching --spec spec.yaml",
    ],
)
def test_commands_that_need_permutations_refuse_other_specs(line: str, folder: Path) -> None:
    run("spec", *NETWORK, "--symmetry", "full", "-o", "spec.yaml")
    spec = ws.SymmetrySpec.load("spec.yaml")
    ws.Element.identity(spec).save("element.safetensors")
    ws.save_checkpoint({name: torch.ones(spec.shape(name)) for name in spec.axes}, "a.pt")
    result = run(*line.split())
    assert result.exit_code == 2, result.output
    assert "spec.yaml holds orthogonal and signed groups, but only permutations can be used here" in result.stderr
    assert result.stderr.count("\n") == 1


def test_permute_refuses_an_element(folder: Path) -> None:
    run("spec", *NETWORK, "-o", "spec.yaml")
    layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    spec = ws.derive_spec(torch.nn.Sequential(*layers), torch.ones(2, 4), symmetry="full")
    ws.Element.identity(spec).save("element.safetensors")
    ws.save_checkpoint({"a": torch.ones(2)}, "a.pt")
    result = run("permute", "a.pt", "element.safetensors", "--spec", "spec.yaml", "-o", "moved.pt")
    assert result.exit_code == 2
    assert "element.safetensors holds an element of a larger symmetry" in result.stderr
