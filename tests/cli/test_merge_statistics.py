"""``weightspace merge`` advises on BatchNorm's running statistics where it averages them."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import weightspace as ws
from weightspace import cli

ADVICE = "Warning: The running statistics of 1 BatchNorm layer are averaged"
KITCHEN = Path(__file__).parents[1] / "soups" / "kitchen.py"


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))
        ws.save_checkpoint(network.state_dict(), f"{name}.pt")
    ws.save_checkpoint({"w": torch.ones(2)}, "plain.pt")
    Path("recipe.yml").write_text("merge_method: linear\nmodels: [{model: a.pt}, {model: b.pt}]\n")


@pytest.mark.parametrize("arguments", ["a.pt b.pt", "a.pt b.pt -m ties --base a.pt", "recipe.yml"])
@pytest.mark.parametrize("out", ["m.pt", "m"])
def test_averaged_statistics_are_told_in_one_line(arguments: str, out: str) -> None:
    result = CliRunner().invoke(cli.main, ["merge", *arguments.split(), "-o", out, "--json"])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if "BatchNorm" in line]
    assert line.startswith(ADVICE)
    assert line.endswith("--task recomputes them.")
    assert json.loads(result.stdout)["warnings"][-1] == line.removeprefix("Warning: ")


@pytest.mark.parametrize(
    "arguments",
    [
        "a.pt b.pt --dry-run",
        "a.pt -m passthrough",
        "a.pt",
        "plain.pt plain.pt",
        f"a.pt b.pt --task {KITCHEN}:TASK",
    ],
)
def test_copies_measured_statistics_and_networks_without_any_are_not(arguments: str) -> None:
    result = CliRunner().invoke(cli.main, ["merge", *arguments.split(), "-o", "m.pt"])
    assert result.exit_code == 0, result.output
    assert "BatchNorm" not in result.stderr


@pytest.mark.parametrize("arguments", ["recipe.yml a.pt", "a.pt recipe.yml", "recipe.yml recipe.yml"])
def test_sources_beside_a_recipe_are_refused(arguments: str) -> None:
    result = CliRunner().invoke(cli.main, ["merge", *arguments.split(), "-o", "m.pt"])
    assert result.exit_code == 2
    assert "recipe.yml is a recipe, which names its own models; also found " in result.stderr


def test_weights_that_cancel_are_told_how_to_go_on() -> None:
    result = CliRunner().invoke(cli.main, ["merge", "a.pt", "b.pt", "--weights=.5,-.5", "-o", "m.pt"])
    assert result.exit_code == 2
    assert "--normalize false" in result.stderr
