"""``weightspace merge --task`` says how models and result score and, with ``--align``, whether a barrier is left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict
from weightspace.lora import extract_lora_files

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
    assert found["barriers"]["b.pt"]["points"] == 5
    assert (found["task"], found["split"]) == ("digits-mlp", "test")


def test_they_are_printed_and_a_small_barrier_is_no_warning() -> None:
    result = run("--align", "weight-matching", *TASK, "-o", "m.pt")
    head, *rows, left, written = result.stdout.splitlines()
    assert head.split() == ["network", "test", "loss", "test", "accuracy"]
    assert [row.split()[0] for row in rows] == ["a.pt", "b.pt", "merged"]
    assert left.startswith("remaining barrier between a.pt and b.pt: 0.0")
    assert left.endswith(" percentage points of accuracy (5 positions)")
    assert written == "m.pt"
    assert "Warning" not in result.stderr


def test_a_barrier_that_is_left_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: ws.PermutationSpec, *_: object, **__: object) -> object:
        return ws.Matching(ws.Permutation.identity(spec), (0.0, 0.0), 0.0, converged=True)

    monkeypatch.setattr("weightspace.matching.match", fails)
    result = run("--align", "weight-matching", *TASK, "-o", "m.pt")
    assert result.exit_code == 0
    assert "Warning: The remaining barrier between a.pt and b.pt is large: " in result.stderr


def test_a_merge_that_is_far_worse_than_its_models_is_a_warning() -> None:
    result = run(*TASK, "-o", "m.pt")
    assert "Warning: The merged network is far worse than each of its models: test loss 0." in result.stderr
    assert "Are they fine-tunes of one model? Align independently trained ones with --align." in result.stderr
    ws.save_checkpoint(ws.load_checkpoint("a.pt"), "b.pt")
    assert "Warning" not in run(*TASK, "-o", "same.pt").stderr


def test_nothing_is_scored_without_a_task_or_in_a_dry_run() -> None:
    for arguments in ((), (*TASK, "--dry-run"), ("--align", "weight-matching", *TASK, "--dry-run")):
        assert "scores" not in json.loads(run(*arguments, "-o", "m.pt", "--json").stdout)


def score_of(path: str) -> dict[str, float]:
    task = ws.load_task("digits-mlp")
    network = task.network()
    network.load_state_dict(ws.load_checkpoint(path))
    return {name: pytest.approx(value, abs=1e-5) for name, value in task.score(network, "test").items()}


def test_models_and_result_are_scored_without_an_alignment_too() -> None:
    found = json.loads(run(*TASK, "-o", "m.pt", "--json").stdout)
    assert found["scores"] == {
        name: score_of(path) for name, path in {"a.pt": "a.pt", "b.pt": "b.pt", "merged": "m.pt"}.items()
    }
    assert "barriers" not in found
    assert (found["task"], found["split"]) == ("digits-mlp", "test")
    head, *rows, written = run(*TASK, "-o", "m.pt").stdout.splitlines()
    assert head.split() == ["network", "test", "loss", "test", "accuracy"]
    assert [row.split()[0] for row in rows] == ["a.pt", "b.pt", "merged"]
    assert written == "m.pt"


def test_the_models_of_a_recipe_are_scored_with_their_base_and_adapters(adapted: dict[str, torch.Tensor]) -> None:
    Path("r.yml").write_text(
        "merge_method: task_arithmetic\nbase_model: a.pt\nmodels: [{model: b.pt}, {model: a.pt+adapter}]\n"
    )
    result = CliRunner().invoke(cli.main, ["merge", "r.yml", *TASK, "-o", "m.pt", "--json"], catch_exceptions=False)
    scores = json.loads(result.stdout)["scores"]
    assert set(scores) == {"a.pt", "b.pt", "a.pt+adapter", "merged"}
    ws.save_checkpoint(adapted, "adapted.pt")
    assert scores["a.pt+adapter"] == score_of("adapted.pt")
    assert scores["a.pt+adapter"] != score_of("a.pt")


@pytest.fixture
def adapted() -> dict[str, torch.Tensor]:
    """Write an adapter of ``a.pt`` and return the tensors of the two together."""
    a = ws.load_checkpoint("a.pt")
    name = next(name for name in a if a[name].ndim == 2)
    state = {**a, name: a[name] + 0.1 * torch.ones(a[name].shape)}
    ws.save_checkpoint(state, "tuned.pt")
    extract_lora_files("a.pt", "tuned.pt", "adapter", rank=1)
    return state


def test_a_model_that_the_task_cannot_score_is_a_warning() -> None:
    Path("blind.py").write_text(BLIND)
    result = run("--task", "blind.py:task", "-o", "m.pt", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scores"] == {}
    for name in ("a.pt", "b.pt", "merged"):
        assert (
            f"Warning: {name} was not scored. Task 'blind' failed when it scored a network on its test" in result.stderr
        )
    assert Path("m.pt").is_file()


#: A task without test data.
BLIND = """
import weightspace as ws

class Blind:
    name, objective = "blind", "accuracy"
    inner = ws.load_task("digits-mlp")
    example_args, network, batches, loss = inner.example_args, inner.network, inner.batches, inner.loss

    def score(self, network, split):
        raise KeyError(split)

task = Blind()
"""
