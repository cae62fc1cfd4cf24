"""The command line: help with examples, one line and exit status 2 on a mistake, results that scripts can read."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch import nn

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict

MODEL = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model file and two checkpoints of it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
            ws.save_checkpoint(nn.Sequential(*layers).state_dict(), f"{'ab'[seed]}.safetensors")
    return tmp_path


NETWORK = ("--network", "model.py:build", "--input", "2,6")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"weightspace {name} " in result.output
    assert "--json" in result.output


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, weightspace.cli as c; c.main(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_spec_is_derived_saved_and_verified_again(folder: Path) -> None:
    result = run("spec", *NETWORK, "-o", "spec.yaml", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["groups"] == {"layer.0": 8, "layer.2": 8}
    assert report["error"] < 1e-5
    assert run("spec", "spec.yaml").exit_code == 0
    assert run("spec", "spec.yaml", *NETWORK).exit_code == 0


def test_match_permute_and_merge_do_what_the_library_does(folder: Path) -> None:
    assert run("spec", *NETWORK, "-o", "spec.yaml").exit_code == 0
    matched = run("match", "a.safetensors", "b.safetensors", "--spec", "spec.yaml", "-o", "p.safetensors", "--json")
    assert json.loads(matched.stdout)["l2_reduction"] > 0
    done = run("permute", "b.safetensors", "p.safetensors", "--spec", "spec.yaml", "-o", "aligned.safetensors")
    assert done.exit_code == 0
    assert run("merge", "a.safetensors", "aligned.safetensors", "-o", "step.safetensors").exit_code == 0
    at_once = run(
        "merge", "a.safetensors", "b.safetensors", "--align", "weight-matching", *NETWORK, "-o", "once.safetensors"
    )
    assert at_once.exit_code == 0, at_once.output
    spec = ws.PermutationSpec.load("spec.yaml")
    a, b = ws.load_checkpoint("a.safetensors"), ws.load_checkpoint("b.safetensors")
    expected = ws.merge([a, ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)])
    for name in ("step", "once"):
        found = ws.load_checkpoint(f"{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_permute_undoes_itself(folder: Path) -> None:
    run("spec", *NETWORK, "-o", "spec.yaml")
    spec = ws.PermutationSpec.load("spec.yaml")
    ws.Permutation.random(spec, seed=3).save("p.safetensors")
    run("permute", "a.safetensors", "p.safetensors", "--spec", "spec.yaml", "-o", "moved.safetensors")
    run(
        "permute",
        "moved.safetensors",
        "p.safetensors",
        "--spec",
        "spec.yaml",
        "--inverse",
        "-o",
        "back.safetensors",
    )
    a, moved, back = (ws.load_checkpoint(f"{name}.safetensors") for name in ("a", "moved", "back"))
    assert all(torch.equal(a[key], back[key]) for key in a)
    assert not all(torch.equal(a[key], moved[key]) for key in a)


def test_merge_weights_and_provenance(folder: Path) -> None:
    assert run("merge", "a.safetensors", "b.safetensors", "--weights", ".6,.4", "-o", "m.safetensors").exit_code == 0
    a, b, m = (ws.load_checkpoint(f"{name}.safetensors") for name in "abm")
    for key in a:
        torch.testing.assert_close(m[key], 0.6 * a[key] + 0.4 * b[key])
    metadata = ws.checkpoints.load_metadata("m.safetensors")  # type: ignore[attr-defined]
    recipe = yaml.safe_load(metadata["recipe"])
    assert [model["parameters"]["weight"] for model in recipe["models"]] == [0.6, 0.4]
    assert [entry["name"] for entry in json.loads(metadata["inputs"])] == ["a.safetensors", "b.safetensors"]


def test_a_folder_is_written_for_any_other_name(folder: Path) -> None:
    assert run("merge", "a.safetensors", "b.safetensors", "-o", "merged").exit_code == 0
    assert (folder / "merged" / "model.safetensors").is_file()


def test_barrier_prints_curves_and_draws_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlp_states: tuple[StateDict, StateDict],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, state in zip("ab", mlp_states, strict=True):
        ws.save_checkpoint(state, f"{name}.safetensors")
    arguments = ("a.safetensors", "b.safetensors", "--task", "digits-mlp", "--points", "5")
    plain = json.loads(run("barrier", *arguments, "--json").stdout)["curves"]["linear"]
    assert {"positions", "loss", "accuracy", "barrier", "accuracy_barrier"} <= plain.keys()
    assert plain["positions"] == [0, 0.25, 0.5, 0.75, 1]
    assert plain["barrier"] > 0.5
    result = run("barrier", *arguments, "--matching", "weight-matching", "-o", "w.png", "-o", "w.csv", "--json")
    found = json.loads(result.stdout)
    naive, matched = found["curves"]["naive"], found["curves"]["weight-matching"]
    assert matched["barrier"] < 0.05 * plain["barrier"]
    assert naive == plain  # one curve has one shape, alone or beside others, on stdout and in a file
    assert ws.Curve(**{key: plain[key] for key in naive.keys() - {"barrier", "accuracy_barrier", "points"}})
    assert found["files"] == ["w.png", "w-naive.csv", "w-weight-matching.csv"]
    assert Path("w.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("w-naive.csv").is_file()
    assert Path("w-weight-matching.csv").is_file()


def test_demo_prints_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Callable[[str, int], StateDict]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("weightspace.demo.train", lambda task, seed: trained(task.name, seed))
    report = json.loads(run("demo", "--json").stdout)
    expected = "naive_barrier matched_barrier naive_midpoint_accuracy matched_midpoint_accuracy l2_reduction seconds"
    assert set(expected.split()) <= report.keys()
    assert report["matched_barrier"] < 0.1 * report["naive_barrier"]
    assert Path(report["output"]).is_file()


MISTAKES: dict[str, tuple[str, ...]] = {
    "missing checkpoint": ("merge", "a.safetensors", "nowhere.safetensors", "-o", "m.safetensors"),
    "truncated checkpoint": ("inspect", "short.safetensors"),
    "another architecture": ("merge", "a.safetensors", "other.safetensors", "-o", "m.safetensors"),
    "checkpoint of another network": (
        "match",
        "other.safetensors",
        "other.safetensors",
        *NETWORK,
        "-o",
        "p.safetensors",
    ),
    "unknown task": ("train", "--task", "digit-mlp", "-o", "m.safetensors"),
    "unknown method": ("merge", "a.safetensors", "b.safetensors", "-m", "liner", "-o", "m.safetensors"),
    "weights of another number": (
        "merge",
        "a.safetensors",
        "b.safetensors",
        "--weights",
        "1",
        "-o",
        "m.safetensors",
    ),
    "weights that are no numbers": (
        "merge",
        "a.safetensors",
        "b.safetensors",
        "--weights",
        "x,y",
        "-o",
        "m.safetensors",
    ),
    "no network": ("match", "a.safetensors", "b.safetensors", "-o", "p.safetensors"),
    "unknown network": ("spec", "--network", "torchvison:resnet18"),
    "unknown model": ("spec", "--network", "torchvision:resnet19"),
    "network without input": ("spec", "--network", "model.py:build"),
    "input that is no shape": ("spec", "--network", "model.py:build", "--input", "x"),
    "input of another shape": ("spec", "--network", "model.py:build", "--input", "2,7"),
    "no such function": ("spec", "--network", "model.py:biuld", "--input", "2,6"),
    "a permutation that is a checkpoint": (
        "permute",
        "a.safetensors",
        "b.safetensors",
        *NETWORK,
        "-o",
        "m.safetensors",
    ),
    "picture of another kind": (
        "barrier",
        "a.safetensors",
        "b.safetensors",
        "--task",
        "digits-mlp",
        "-o",
        "w.gif",
    ),
    "align without a network": (
        "merge",
        "a.safetensors",
        "b.safetensors",
        "--align",
        "weight-matching",
        "-o",
        "m.safetensors",
    ),
    "unknown alignment": ("merge", "a.safetensors", "b.safetensors", "--align", "matching", *NETWORK, "-o", "m.pt"),
    "network without align": ("merge", "a.safetensors", "b.safetensors", *NETWORK, "-o", "m.safetensors"),
    "spec that is no spec": ("spec", "model.py"),
    "unknown command": ("merg", "a.safetensors"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(mistake: str, folder: Path) -> None:
    ws.save_checkpoint({"w": torch.zeros(3)}, "other.safetensors")
    Path("short.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:200])
    before = sorted(folder.iterdir())
    result = run(*MISTAKES[mistake])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.output
    assert len(line) < 400
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == before


def test_entry_point_is_the_cli() -> None:
    from importlib.metadata import entry_points

    (entry,) = [e for e in entry_points(group="console_scripts") if e.name == "weightspace"]
    loaded: Any = entry.load()
    assert loaded is cli.main


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["merge"], "Error: Expected a recipe or checkpoints, and -o OUT. Try 'weightspace merge --help'."),
        (["--bogus"], "Error: No such option"),
        (["match", "a"], "Error: Missing argument 'SOURCE'. Try 'weightspace match --help'."),
        (["labels", "locu"], "Error: No such command 'locu'."),
        (["barrier", "a", "b", "--points", "x\ny"], "--points"),
        (["bogus"], "Error: Unknown command 'bogus'"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(cli.main, arguments, prog_name="weightspace")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert line in result.stderr
    assert re.search(r" Try 'weightspace( [a-z-]+)? --help'\.\n$", result.stderr)


def test_a_group_without_a_command_shows_its_help() -> None:
    result = run("labels")
    assert "Commands:" in result.output
    assert "Error" not in result.output
