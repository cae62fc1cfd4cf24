"""``weightspace spectrum`` from files to tables, JSON and pictures."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict

LAYERS = ["hidden1.weight", "hidden2.weight", "hidden3.weight", "head.weight"]
TASK = ("--task", "digits-mlp")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["spectrum", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlp_states: tuple[StateDict, StateDict]) -> Path:
    """Return the working directory, with two trained networks and the mean of the unaligned two."""
    monkeypatch.chdir(tmp_path)
    a, b = mlp_states
    for name, state in {"a": a, "b": b, "m": ws.interpolate(a, b, 0.5)}.items():
        ws.save_checkpoint(state, f"{name}.safetensors")
    return tmp_path


def test_one_network_is_a_table_of_its_layers(folder: Path, mlp_states: tuple[StateDict, StateDict]) -> None:
    result = run("a.safetensors", "--gamma", "0.3", "--gamma", "1")
    assert result.exit_code == 0, result.output
    head, *rows = (line.split() for line in result.stdout.splitlines())
    assert head[:4] == ["layer", "shape", "largest", "smallest"]
    assert [row[0] for row in rows] == LAYERS
    values = torch.linalg.svdvals(mlp_states[0]["head.weight"].double())
    kept = [str(int((values >= gamma * values[0]).sum())) for gamma in (0.3, 1)]
    assert rows[-1][1:6] == ["10×512", f"{float(values[0]):.4g}", f"{float(values[-1]):.4g}", *kept]


def test_two_networks_are_compared_as_the_library_does_unaligned_always(
    folder: Path, mlp_states: tuple[StateDict, StateDict]
) -> None:
    result = run(
        *("a.safetensors", "b.safetensors", "--gamma", "0.3", "--gamma", "0.7", *TASK, "--inputs", "--json"),
        *("--matching", "weight-matching", "--against", "m.safetensors"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["gammas"] == [0.3, 0.7]
    assert list(found["alignment"]) == ["unaligned", "weight-matching", "merged", "unaligned mean"]
    expected = ws.singular_alignment(*mlp_states)
    unaligned = found["alignment"]["unaligned"][0]
    assert unaligned["total"] == pytest.approx(expected.total, abs=1e-9)
    assert unaligned["per_layer"] == pytest.approx(dict(expected.per_layer), abs=1e-9)
    matched = [one["total"] for one in found["alignment"]["weight-matching"]]
    assert abs(unaligned["total"]) < 0.05 < 0.2 < matched[0] < matched[1]
    merged = found["alignment"]["merged"][0]["total"]  # a merge of the unaligned: near A, and no alignment at all
    assert merged > 0.5
    assert merged == pytest.approx(found["alignment"]["unaligned mean"][0]["total"], abs=1e-6)
    distance = found["distance"]
    assert distance["weight-matching"]["total"]["relative"] < distance["unaligned"]["total"]["relative"]
    assert distance["weight-matching"]["total"]["bound"] == pytest.approx(distance["unaligned"]["total"]["bound"])
    assert list(found["networks"]) == ["a", "b"]
    assert list(found["networks"]["b"]["layers"]) == LAYERS
    assert len(found["networks"]["b"]["layers"]["head.weight"]["values"]) == 10
    assert [one["gamma"] for one in found["inputs"]["hidden2.weight"]] == [0.3, 0.7]
    assert found["inputs"]["hidden2.weight"][0]["ratio"] > 3
    assert found["midpoint_change"]["weight-matching"]["head.weight"] < 0.1


def test_the_mean_of_the_matched_is_made_where_no_checkpoint_has_its_name(
    folder: Path, mlp_states: tuple[StateDict, StateDict]
) -> None:
    a, b = mlp_states
    matched = ("a.safetensors", "b.safetensors", *TASK, "--matching", "weight-matching", "--json")
    task = ws.load_task("digits-mlp")
    spec = ws.derive_spec(task.network(), task.example_args)
    merged = ws.interpolate(a, ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b), 0.5)
    found = json.loads(run(*matched, "--against", "merged").stdout)["alignment"]
    assert found["merged"][0]["total"] == pytest.approx(ws.singular_alignment(a, merged, spec=spec).total, abs=1e-9)
    ws.save_checkpoint(ws.interpolate(a, b, 0.5), "merged")
    other = json.loads(run(*matched, "--against", "merged").stdout)["alignment"]
    assert other["merged"][0]["total"] == pytest.approx(other["unaligned mean"][0]["total"], abs=1e-6)


def test_the_tables_have_a_row_a_layer_and_the_whole(folder: Path) -> None:
    result = run("a.safetensors", "b.safetensors", *TASK, "--matching", "weight-matching", "--inputs")
    assert result.exit_code == 0, result.output
    distances, alignments, inputs = (table.splitlines() for table in result.stdout.strip().split("\n\n"))
    assert [line.split()[0] for line in distances] == ["layer", *LAYERS, "all"]
    assert [line.split()[0].rstrip(",") for line in alignments] == ["R", *LAYERS, "all"]
    assert alignments[0].split()[-2:] == ["unaligned", "weight-matching"]
    assert float(alignments[-1].split()[-2]) < 0.05 < 0.2 < float(alignments[-1].split()[-1])
    assert [line.split()[0].rstrip(",") for line in inputs] == ["inputs", *LAYERS]


def test_pictures_are_written_and_named(folder: Path) -> None:
    result = run("a.safetensors", "b.safetensors", "-o", "ab.png")
    assert result.exit_code == 0, result.output
    names = ["ab-alignment.png", "ab-vectors.png", "ab-values.png"]
    assert result.stdout.split()[-3:] == names
    assert json.loads(run("a.safetensors", "-o", "one.svg", "--json").stdout)["files"] == ["one.svg"]
    assert all(Path(name).read_bytes()[:4] == b"\x89PNG" for name in names)
    written = {path.name for path in folder.iterdir()} - {f"{name}.safetensors" for name in "abm"}
    assert written == {*names, "one.svg"}


def test_names_choose_layers(folder: Path) -> None:
    result = run("a.safetensors", "b.safetensors", "--names", "head.weight,hidden1*", "--json")
    assert list(json.loads(result.stdout)["distance"]["unaligned"]["per_layer"]) == ["hidden1.weight", "head.weight"]


def test_a_threshold_that_depends_on_rounding_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ws.save_checkpoint({"fc.weight": torch.diag(torch.tensor([1.0, 0.5000001, 0.4999999]))}, "near.safetensors")
    ws.save_checkpoint({"fc.weight": torch.diag(torch.tensor([1.0, 0.9, 0.1]))}, "far.safetensors")
    result = run("near.safetensors", "far.safetensors", "--gamma", "0.5")
    assert "Warning: unaligned, σ ≥ 0.5 max" in result.stderr
    assert "fc.weight" in result.stderr
    assert "Warning" not in run("near.safetensors", "far.safetensors", "--gamma", "0.3").stderr


def test_a_zero_matrix_is_a_dash_and_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, weight in {"zero": torch.zeros(2, 2), "one": torch.eye(2)}.items():
        ws.save_checkpoint({"fc.weight": weight}, f"{name}.safetensors")
    assert run("zero.safetensors", "one.safetensors").stdout.splitlines()[-1].split()[-1] == "-"
    found = json.loads(run("zero.safetensors", "one.safetensors", "--json", "-o", "z.png").stdout)
    assert found["alignment"]["unaligned"][0]["total"] is None


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "matching one network": (("a.safetensors", "--matching", "weight-matching", *TASK), "Give A and B"),
    "merged of one network": (("a.safetensors", "--against", "m.safetensors"), "Give A and B"),
    "merged without matching": (("a.safetensors", "b.safetensors", "--against", "merged"), "Give --matching, or a"),
    "matching what": (("a.safetensors", "b.safetensors", "--matching", "weight-matching"), "The network is unknown."),
    "inputs of what": (("a.safetensors", "--inputs"), "Give a task: --task"),
    "a task for nothing": (("a.safetensors", *TASK), "--task describes the network to match"),
    "a network for inputs": (
        ("a.safetensors", *TASK, "--inputs", "--network", "torchvision:resnet18"),
        "--network describes",
    ),
    "no such layer": (("a.safetensors", "--names", "hidden4.weight"), "Unknown weight matrix 'hidden4.weight'"),
    "a picture of another kind": (("a.safetensors", "-o", "ab.gif"), ".png, .svg, .pdf"),
    "another architecture": (("a.safetensors", "other.safetensors"), "other.safetensors do not fit together"),
    "not finite": (("bad.safetensors",), "bad.safetensors: 1 tensor ('fc.weight' 1 of 4)"),
    "no weights": (("bias.safetensors",), "bias.safetensors: no weight matrices"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(mistake: str, folder: Path) -> None:
    ws.save_checkpoint({"fc.weight": torch.eye(2)}, "other.safetensors")
    ws.save_checkpoint({"fc.weight": torch.tensor([[1.0, float("nan")], [0, 1]])}, "bad.safetensors")
    ws.save_checkpoint({"fc.bias": torch.ones(2)}, "bias.safetensors")
    before = sorted(folder.iterdir())
    arguments, message = MISTAKES[mistake]
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert sorted(folder.iterdir()) == before
