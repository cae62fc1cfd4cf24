"""``weightspace barrier``: two networks, many, and the plane through three."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict
from weightspace.connectivity import BarrierMatrix, Plane


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["barrier", *arguments])


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Callable[[str, int], StateDict]) -> None:
    """Two networks a.pt and b.pt of digits-mlp, and a third that is a permuted copy of the second."""
    monkeypatch.chdir(tmp_path)
    task = ws.load_task("digits-mlp")
    spec = ws.derive_spec(task.network(), task.example_args)
    a, b = trained("digits-mlp", 0), trained("digits-mlp", 1)
    for name, state in zip("abc", (a, b, ws.permute(spec, ws.Permutation.random(spec, seed=1), b)), strict=True):
        ws.save_checkpoint(state, f"{name}.pt")


TASK = ("--task", "digits-mlp")


@pytest.mark.usefixtures("models")
def test_three_networks_have_a_matrix_before_and_after_matching() -> None:
    result = run("a.pt", "b.pt", "c.pt", *TASK, "--points", "3", "-o", "m.csv", "-o", "m.png", "--json", *MATCHED)
    matrices = json.loads(result.stdout)["matrices"]
    naive, matrix = matrices["naive"], matrices["weight-matching"]
    assert matrix["models"] == ["a", "b", "c"]
    assert naive["barrier"][1][2] > 0.3
    assert abs(matrix["barrier"][1][2]) < 1e-6  # the copies are matched to a, and so to each other
    assert matrix["barrier"][0][1] < 0.1 * naive["barrier"][0][1]
    assert BarrierMatrix.load("m-naive.csv").barrier[1][2] == naive["barrier"][1][2]
    assert matrix["points"] == BarrierMatrix.load("m-naive.csv").points == 3
    assert Path("m-weight-matching.csv").is_file()
    assert Path("m.png").read_bytes()[:4] == b"\x89PNG"


MATCHED = ("--matching", "weight-matching")


@pytest.mark.usefixtures("models")
def test_the_matrix_is_printed_as_a_table() -> None:
    lines = run("a.pt", "b.pt", "c.pt", *TASK, "--points", "3").stdout.splitlines()
    below = "below the diagonal, of the accuracy (percentage points)"
    assert lines[0] == f"barriers of the loss (nats, 3 positions); {below}"
    assert lines[1].split() == ["a", "b", "c"]
    a, b, c = (ws.load_checkpoint(f"{name}.pt") for name in "abc")
    curve = ws.loss_curve(ws.load_task("digits-mlp"), a, b, 3)
    assert lines[2].split()[:3] == ["a", "·", f"{ws.barrier(curve):.4f}"]
    assert lines[3].split()[:3] == ["b", f"{100 * ws.barrier(curve, score='accuracy'):.2f}", "·"]
    assert c.keys() == a.keys()


@pytest.mark.usefixtures("models")
def test_the_plane_through_three_networks_is_scored_saved_and_drawn() -> None:
    options = ("--plane", "--resolution", "3", "-o", "p.json", "-o", "p.svg")
    plane = json.loads(run("a.pt", "b.pt", "c.pt", *TASK, *options, "--json").stdout)["planes"]["linear"]
    assert [len(row) for row in plane["loss"]] == [3, 3, 3]
    assert Plane.load("p.json").loss == tuple(map(tuple, plane["loss"]))
    assert "test loss (nats)" in Path("p.svg").read_text()
    assert run("a.pt", "b.pt", *TASK, "--points", "3", "-o", "c.svg").exit_code == 0
    assert "linear path: barrier" in Path("c.svg").read_text()
    assert "nats on the plane" in run("a.pt", "b.pt", "c.pt", *TASK, *options).stdout


@pytest.mark.usefixtures("models")
def test_a_barrier_says_at_how_many_points_it_was_measured() -> None:
    arguments = ("a.pt", "b.pt", *TASK, "--points", "3")
    (line,) = run(*arguments).stdout.splitlines()
    unit = r"[\d.]+ nats of loss, [\d.]+ percentage points of accuracy \(3 positions\)"
    assert re.fullmatch(rf"barrier: {unit}", line)
    naive, matched = run(*arguments, *MATCHED).stdout.splitlines()
    assert naive == f"naive {line}"
    assert re.fullmatch(rf"weight-matching barrier: {unit}", matched)
    assert json.loads(run(*arguments, "--json").stdout)["curves"]["linear"]["points"] == 3


@pytest.mark.usefixtures("models")
def test_taylor_and_temperature_are_shown_with_the_barrier() -> None:
    arguments = ("a.pt", "b.pt", *TASK, "--points", "3", "--taylor", "--temperature")
    found = json.loads(run(*arguments, "--json").stdout)["curves"]["linear"]
    states = [ws.load_checkpoint(f"{name}.pt") for name in "ab"]
    assert found["taylor"] == ws.taylor_barrier(ws.load_task("digits-mlp"), *states, split="test")
    assert found["temperature"]["loss"] == found["loss"][1]
    assert found["temperature"]["tempered_loss"] < found["loss"][1]
    text = run(*arguments).stdout
    assert "\nTaylor estimate: " in text
    assert "at temperature" in text


@pytest.mark.usefixtures("models")
def test_repair_is_a_choice_of_statistics() -> None:
    arguments = ("a.pt", "b.pt", *TASK, "--points", "3", "--json")
    found = (json.loads(run(*arguments, "--statistics", kind).stdout)["curves"] for kind in ("none", "repair"))
    plain, repaired = (curves["linear"] for curves in found)
    assert repaired["statistics"] == "repair"
    assert repaired["barrier"] < 0.5 * plain["barrier"]


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "plane of two": (("a.pt", "b.pt", "--plane"), "three networks; found 2"),
    "plane with repair": (("a.pt", "b.pt", "c.pt", "--plane", "--statistics", "repair"), "REPAIR is defined"),
    "taylor of three": (("a.pt", "b.pt", "c.pt", "--taylor"), "take two networks; found 3"),
    "temperature of a plane": (("a.pt", "b.pt", "c.pt", "--plane", "--temperature"), "take two networks"),
    "one network twice": (("a.pt", "b.pt", "a.pt"), "must be distinct"),
    "a plane flat as a line": (("a.pt", "b.pt", "b2.pt", "--plane"), "collinear"),
    "table of another kind": (("a.pt", "b.pt", "c.pt", "-o", "m.xlsx"), "neither an image"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("models")
def test_a_mistake_is_one_line_and_exit_status_2(mistake: str) -> None:
    Path("b2.pt").write_bytes(Path("b.pt").read_bytes())
    arguments, message = MISTAKES[mistake]
    few = ("--resolution", "2") if "--plane" in arguments else ("--points", "3")
    result: Any = run(*arguments, *TASK, *few)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line


@pytest.mark.usefixtures("models")
def test_nan_and_infinity_are_null_in_json() -> None:
    state = dict(ws.load_checkpoint("b.pt"))
    state["head.bias"] = state["head.bias"].clone()
    state["head.bias"][0] = float("nan")
    ws.save_checkpoint(state, "n.pt")
    found = run("a.pt", "n.pt", *TASK, "--points", "3", "--json")
    assert json.loads(found.stdout, parse_constant=pytest.fail)["curves"]["linear"]["barrier"] is None


@pytest.mark.usefixtures("models")
def test_a_network_that_diverged_is_named_in_a_warning() -> None:
    state = dict(ws.load_checkpoint("b.pt"))
    state["head.bias"] = torch.full_like(state["head.bias"], float("nan"))
    ws.save_checkpoint(state, "n.pt")
    found = run("a.pt", "n.pt", *TASK, "--points", "3")
    assert found.exit_code == 0
    assert "Warning: n.pt: 1 tensor ('head.bias' 10 of 10) with NaN" in found.stderr
    assert "Warning" not in run("a.pt", "b.pt", *TASK, "--points", "3").stderr
