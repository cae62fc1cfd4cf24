"""``weightspace merge --align … --least-squares``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict
from weightspace.connectivity import reset_statistics
from weightspace.merging import least_squares

ALIGNED = ("--align", "activation-matching", "--task", "digits-cnn", "--least-squares")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["merge", *arguments])


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Callable[[str, int], StateDict]) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        ws.save_checkpoint(trained("digits-cnn", seed), f"{name}.pt")


def test_the_result_is_the_library_s_and_is_reproduced() -> None:
    found = run("a.pt", "b.pt", *ALIGNED, "--weights", "1,3", "-o", "m.safetensors", "--json")
    assert found.exit_code == 0, found.output
    assert "BatchNorm" not in found.stderr
    task, a, b = ws.load_task("digits-cnn"), ws.load_checkpoint("a.pt"), ws.load_checkpoint("b.pt")
    spec = ws.derive_spec(task.network(), task.example_args)
    aligned = ws.permute(spec, ws.activation_matching(spec, a, b, task=task).permutation, b)
    with pytest.warns(ws.WeightspaceWarning, match="running statistics"):
        fitted = least_squares(task, [a, aligned], weights=[1, 3])
    merged = ws.load_checkpoint("m.safetensors")
    for name, tensor in reset_statistics(task, fitted).items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-5)
    assert json.loads(found.stdout)["scores"]["merged"]["accuracy"] > 0.97
    again = run("--reproduce", "m.safetensors", *ALIGNED)
    assert (again.exit_code, again.stdout) == (0, "m.safetensors: the same bytes\n"), again.output
    other = run("--reproduce", "m.safetensors", *ALIGNED[:-1])
    assert other.exit_code == 2
    assert "m.safetensors was made with --least-squares: do the same." in other.stderr


def test_the_barrier_of_the_start_is_no_reason_for_a_warning() -> None:
    result = run("a.pt", "b.pt", *ALIGNED, "-o", "m.safetensors")
    assert result.exit_code == 0, result.output
    assert "barrier before least squares between a.pt and b.pt" in result.stdout
    assert "worse than its parents" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.pt", "b.pt", *ALIGNED[2:]), "--least-squares needs aligned networks; add --align ALIGN."),
        (("a.pt", "b.pt", *ALIGNED[:2], *ALIGNED[4:]), "--least-squares needs the data of a task; add --task TASK."),
        (("a.pt", "b.pt", *ALIGNED, "-m", "slerp"), "found the method 'slerp'"),
        (("a.pt", "b.pt", *ALIGNED, "--normalize", "false"), "--normalize has no effect with --least-squares"),
        (("recipe.yml", *ALIGNED), "not a recipe"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments, "-o", "m.pt")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("m.pt").exists()
