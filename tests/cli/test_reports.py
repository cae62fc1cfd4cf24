"""``--json`` and the files that are named: the same keys in every command, documented, and every file there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from weightspace.cli.reports import SCHEMA

import weightspace as ws
from weightspace import cli
from weightspace.demo import DemoReport

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "pages" / "formats" / "json.md").read_text()
TASK = """
import torch
from torch import nn
from weightspace.tasks import ClassificationTask, Examples, TrainConfig

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def load():
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), Examples(inputs, inputs[:, :3].argmax(1)))

task = ClassificationTask("signs", build, load, batch_size=20, recipe=TrainConfig(epochs=1))
"""
ON = "--task signs.py:task"
HEAD = ["schema", "command", "output", "files", "task", "split"]

#: A command -> the files that it writes beside its -o.
RUNS = {
    f"train {ON} -o t.pt": [],
    f"train {ON} -o folder": ["folder/model.safetensors"],
    "inspect a.pt": [],
    "inspect a.pt b.pt": [],
    f"spec {ON} -o s.yaml": [],
    f"match a.pt b.pt {ON} -o p.safetensors": [],
    f"match a.pt b.pt {ON} --method merge-many -o many --merged m.pt": [
        *("many/1-a.safetensors", "many/2-b.safetensors", "m.pt")
    ],
    f"permute b.pt planted.safetensors {ON} -o moved.pt": [],
    f"evidence a.pt {ON} --kind fisher --examples 8 -o f.safetensors": [],
    "merge a.pt b.pt -o m": ["m/README.md", "m/model.safetensors"],
    "merge a.pt b.pt -o m.pt --dry-run": [],
    f"merge a.pt b.pt --align weight-matching {ON} -o m.pt": [],
    "extract-lora a.pt b.pt --rank 1 --lenient -o lora": ["lora/adapter_config.json", "lora/adapter_model.safetensors"],
    f"barrier a.pt b.pt {ON} --points 3 --matching weight-matching -o way.csv -o way.png": [
        *("way-naive.csv", "way-weight-matching.csv", "way.png")
    ],
    f"barrier a.pt b.pt c.pt {ON} --points 3 -o m.json": [],
    f"barrier a.pt b.pt c.pt {ON} --plane --resolution 2 -o p.json": [],
    "spectrum a.pt": [],
    "spectrum a.pt b.pt -o ab.png": ["ab-alignment.png", "ab-vectors.png", "ab-values.png"],
    f"soup a.pt b.pt {ON} -o s.pt --report s.json": ["s.pt", "s.json"],
    f"soup a.pt b.pt {ON} --recipe wise-ft --positions 0,1 -o s.pt": [],
    "soup a.pt b.pt --recipe uniform -o s.pt": [],
    f"ensemble a.pt b.pt {ON} --pairs 1 -o e.png": [],
    "labels build --discrete x,y,z -o m.safetensors": [],
    "labels predict metric.safetensors scores.npy --observed x,y,z -o p.csv": [],
    "labels evaluate metric.safetensors scores.npy --observed x,y,z --truth names.txt": [],
    "labels locus metric.safetensors --observed x,y -o l.png": [],
    "labels cover metric.safetensors": [],
    "labels next metric.safetensors --observed x": [],
}


def run(command: str) -> Result:
    return CliRunner().invoke(cli.main, command.split(), catch_exceptions=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a task, networks, a metric and scores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    Path("signs.py").write_text(TASK)
    for seed, name in enumerate("abc"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ws.save_checkpoint(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(), f"{name}.pt")
    task = ws.load_task("signs.py:task")
    spec = ws.derive_spec(task.network(), task.example_args)
    ws.Permutation.random(spec, seed=0).save("planted.safetensors")
    ws.LabelMetric.from_tree({"y": "x", "z": "x"}).save("metric.safetensors")
    Path("names.txt").write_text("x\ny\nz\n")
    np.save("scores.npy", np.eye(3))


def expected_files(command: str) -> list[str]:
    named = command.split(" -o ")[1].split()[:1] if " -o " in command and "--dry-run" not in command else []
    return RUNS[command] or named


@pytest.mark.parametrize("command", RUNS)
def test_json_has_the_same_first_keys_in_every_command_and_every_key_is_documented(command: str) -> None:
    result = run(f"{command} --json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert list(found)[: len(HEAD)] == HEAD
    assert found["schema"] == SCHEMA
    assert command.startswith(found["command"] + " ")
    assert found["output"] == (command.split(" -o ")[1].split()[0] if " -o " in command else None)
    assert found["task"] == ("signs" if ON in command else None)
    assert found["files"] == expected_files(command)
    assert found.keys() - set(HEAD) <= documented(found["command"])


@pytest.mark.parametrize("command", RUNS)
def test_the_last_lines_are_all_files_that_were_written(command: str) -> None:
    before = set(files())
    result = run(command)
    assert result.exit_code == 0, result.output
    expected = expected_files(command)
    assert set(files()) - before == set(expected)
    if expected:
        assert result.stdout.splitlines()[-len(expected) :] == expected


def documented(command: str) -> set[str]:
    """Return the keys that the table has for a command."""
    (row,) = re.findall(rf"^\| `{command}` \| (.*) \|$", DOCUMENTED, flags=re.MULTILINE)
    return set(re.findall(r"`([a-z_0-9]+)`", row))


def files() -> Iterator[str]:
    return (str(path) for path in Path().rglob("*") if path.is_file() and "cache" not in str(path))


def test_every_command_is_documented() -> None:
    for name in cli.COMMANDS:
        assert f"| `{name}" in DOCUMENTED, name
    assert set(HEAD) <= set(re.findall(r"^\| `(\w+)`", DOCUMENTED, re.MULTILINE))
    assert DemoReport.__dataclass_fields__.keys() - {"picture"} <= documented("demo")


def test_a_curve_has_the_same_keys_on_stdout_and_in_its_file() -> None:
    run(f"barrier a.pt b.pt {ON} --points 3 -o way.json")
    printed = json.loads(run(f"barrier a.pt b.pt {ON} --points 3 --json").stdout)["curves"]["linear"]
    saved = json.loads(Path("way.json").read_text())
    assert {key: printed[key] for key in saved} == saved
    assert printed.keys() - saved.keys() == {"barrier", "accuracy_barrier", "points"}
