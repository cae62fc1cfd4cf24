"""``weightspace merge --align --task`` says how parents and result score, and whether a barrier is left."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict

TASK = ("--task", "digits-mlp")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["merge", "a.pt", "b.pt", *arguments], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Callable[[str, int], StateDict]) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        ws.save_checkpoint(trained("digits-mlp", seed), f"{name}.pt")


def test_the_scores_of_parents_and_result_and_the_barrier_are_those_of_the_library() -> None:
    found = json.loads(run("--align", "weight-matching", *TASK, "-o", "m.pt", "--json").stdout)
    task = ws.load_task("digits-mlp")
    for name, path in {"a.pt": "a.pt", "b.pt": "b.pt", "merged": "m.pt"}.items():
        network = task.network()
        network.load_state_dict(ws.load_checkpoint(path))
        for score, value in task.score(network, "test").items():
            assert found["scores"][name][score] == pytest.approx(value, abs=1e-5)
    a, b = ws.load_checkpoint("a.pt"), ws.load_checkpoint("b.pt")
    spec = ws.derive_spec(task.network(), task.example_args)
    matched = ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)
    assert found["barriers"]["b.pt"]["loss"] == ws.barrier(ws.loss_curve(task, a, matched, 5))
    assert (found["task"], found["split"]) == ("digits-mlp", "test")


def test_they_are_printed_and_a_small_barrier_is_no_warning() -> None:
    result = run("--align", "weight-matching", *TASK, "-o", "m.pt")
    head, *rows, left, written = result.stdout.splitlines()
    assert head.split() == ["network", "test", "loss", "test", "accuracy"]
    assert [row.split()[0] for row in rows] == ["a.pt", "b.pt", "merged"]
    assert left.startswith("remaining barrier between a.pt and b.pt: 0.0")
    assert written == "m.pt"
    assert "Warning" not in result.stderr


def test_a_barrier_that_is_left_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: ws.PermutationSpec, *_: object, **__: object) -> object:
        return SimpleNamespace(permutation=ws.Permutation.identity(spec))

    monkeypatch.setattr("weightspace.matching.match", fails)
    result = run("--align", "weight-matching", *TASK, "-o", "m.pt")
    assert result.exit_code == 0
    assert "Warning: The remaining barrier between a.pt and b.pt is large: " in result.stderr


def test_nothing_is_scored_without_both_or_in_a_dry_run() -> None:
    for arguments in (TASK, ("--align", "weight-matching", *TASK, "--dry-run")):
        assert "scores" not in json.loads(run(*arguments, "-o", "m.pt", "--json").stdout)
