"""``weightspace match``: every method by its name, and mistakes in a line."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.matching import MANY_MATCHINGS, MATCHINGS

TASK = """
import torch
from torch import nn
from weightspace.tasks import ClassificationTask, Examples

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

def load():
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), Examples(inputs, inputs[:, :3].argmax(1)))

task = ClassificationTask("signs", build, load, batch_size=20)
"""
NAMED = ("--task", "signs.py:task")
PAIR = ("a.safetensors", "b.safetensors")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["match", *PAIR, *arguments])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a task and two checkpoints of it."""
    monkeypatch.chdir(tmp_path)
    Path("signs.py").write_text(TASK)
    task = ws.load_task("signs.py:task")
    for seed, name in enumerate(PAIR):
        ws.save_checkpoint(ws.train(task, seed, epochs=3), name)


@pytest.mark.parametrize("method", MATCHINGS)
def test_every_method_writes_its_permutation_and_says_how_well_it_did(method: str) -> None:
    steps = ("--steps", "5") if "steps" in MATCHINGS[method].options else ()
    result = run(*NAMED, "--method", method, *steps, "-o", "p.safetensors", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["method"] == method
    assert report["output"] == "p.safetensors"
    assert len(report["objective"]) >= 2
    assert {"l2_reduction", "converged", "groups", "seconds", "seed"} <= report.keys()
    assert result.stderr.startswith(f"{method}: ")
    task = ws.load_task("signs.py:task")
    symmetry = MATCHINGS[method].symmetry
    spec: Any = ws.derive_spec(task.network(), task.example_args, symmetry=symmetry)  # type: ignore[call-overload]
    a, b = (ws.load_checkpoint(name) for name in PAIR)
    options = {"steps": 5} if steps else {}
    expected = ws.matching.match(spec, a, b, method, task=task, **options)  # type: ignore[attr-defined]
    if symmetry == "full":
        found = ws.Element.load("p.safetensors", spec).moves
        assert all(torch.equal(found[name], value) for name, value in expected.element.moves.items())
    else:
        assert ws.Permutation.load("p.safetensors", spec) == expected.permutation


def test_help_lists_every_method_with_its_paper_and_costs_no_torch() -> None:
    text = re.sub(r"\s+", " ", CliRunner().invoke(cli.main, ["match", "--help"]).output)
    for row in (*MATCHINGS.values(), *MANY_MATCHINGS.values()):
        assert f"{row.name} " in text
        assert row.source in text
    code = (
        "import sys, weightspace.cli as c; c.main(['match', '--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "straight-trough"), "Did you mean 'straight-through'?"),
        (("--steps", "3"), "'weight-matching' has no option 'steps'; its options are restarts, max_sweeps, device."),
        (("--method", "sinkhorn-l2", "--start", "here"), "expected one of noise, identity."),
        (("--method", "activation-matching", "--restarts", "1"), "has no option 'restarts'; it has none."),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*NAMED, *arguments, "-o", "p.safetensors")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert message in result.stderr
    assert not Path("p.safetensors").exists()


def test_a_name_that_no_permutation_can_have_is_refused_before_one_is_searched_for() -> None:
    result = run(*NAMED, "--method", "straight-through", "--steps", "1000000", "-o", "p.txt")
    assert result.exit_code == 2
    assert result.stderr == "Error: A permutation is a .safetensors file; found 'p.txt'.\n"


def test_a_method_that_needs_a_task_says_so(tmp_path: Path) -> None:
    network = ("--network", "signs.py:build", "--input", "2,6")
    result = run(*network, "--method", "activation-matching", "-o", "p.safetensors")
    assert result.exit_code == 2
    assert "'activation-matching' uses data: give it the task of the networks (--task)." in result.stderr
    assert run(*network, "--method", "sinkhorn-l2", "--steps", "2", "-o", "p.safetensors").exit_code == 0


def test_options_reach_the_method() -> None:
    spec_of = ("--network", "signs.py:build", "--input", "2,6")
    ends = []
    for restarts in ("0", "20"):
        result = run(*spec_of, "--restarts", restarts, "-o", "p.safetensors", "--json")
        ends.append(json.loads(result.stdout)["objective"][-1])
    assert ends[0] < ends[1]


def test_method_without_a_name_lists_every_method_with_its_paper() -> None:
    result = CliRunner().invoke(cli.main, ["match", "--method"])
    assert result.exit_code == 0
    for row in [*MATCHINGS.values(), *MANY_MATCHINGS.values()]:
        assert row.name in result.output
        assert row.source in result.output


def test_a_permutation_in_place_of_the_checkpoint_is_reported() -> None:
    assert run(*NAMED, "-o", "p.safetensors").exit_code == 0
    result = CliRunner().invoke(cli.main, ["permute", "p.safetensors", PAIR[1], *NAMED, "-o", "m.safetensors"])
    assert result.exit_code == 2
    assert "CHECKPOINT and PERMUTATION look swapped: p.safetensors is a permutation" in result.stderr
    assert not Path("m.safetensors").exists()


def test_a_task_in_place_of_a_network_is_reported() -> None:
    result = CliRunner().invoke(cli.main, ["spec", "--network", "signs.py:task"])
    assert result.exit_code == 2
    assert "signs.py:task is a task, not a network. Give it as --task signs.py:task." in result.stderr
