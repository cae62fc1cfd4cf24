"""``--device``, ``--dtype``, ``--network`` and ``--input`` of the commands that run networks."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli

TASK = """
import torch
from torch import nn
from weightspace.tasks import ClassificationTask, Examples, TrainConfig

def build(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

def load():
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return dict.fromkeys(("train", "validation", "test"), Examples(inputs, inputs[:, :3].argmax(1)))

task = ClassificationTask("signs", build, load, batch_size=20, recipe=TrainConfig(epochs=1))
wide = ClassificationTask("wide", lambda: build(12), load, batch_size=20, recipe=TrainConfig(epochs=1))
"""
ON = "--task signs.py:task"


def run(command: str) -> Result:
    return CliRunner().invoke(cli.main, command.split(), catch_exceptions=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    Path("signs.py").write_text(TASK)
    for name, task in (("", "task"), ("wide-", "wide")):
        for seed, letter in enumerate("ab"):
            ws.save_checkpoint(ws.train(ws.load_task(f"signs.py:{task}"), seed), f"{name}{letter}.pt")
    ws.LabelMetric.from_grid((3,), labels=["a", "b", "c"]).save("tree.safetensors")
    Path("scores.csv").write_text("0.75,0.25\n0.5,0.5\n")


#: What runs networks or decomposes matrices.
ON_DEVICES = (
    f"train {ON} -o out.pt",
    f"evidence a.pt {ON} --kind fisher -o out.safetensors",
    f"match a.pt b.pt {ON} --method activation-matching -o out.safetensors",
    f"merge a.pt b.pt {ON} --align weight-matching -o out.pt",
    f"barrier a.pt b.pt {ON} --points 3 -o out.png",
    f"regmean-plusplus a.pt b.pt {ON} -o out.pt",
    f"calibrate-routers a.pt b.pt {ON} --routers 2 -o out.pt",
    "spectrum a.pt -o out.png",
    f"soup a.pt b.pt {ON} -o out.pt",
    f"ensemble a.pt b.pt {ON} --pairs 1 -o out.png",
    "extract-lora a.pt b.pt --rank 1 --lenient -o out",
    "labels predict tree.safetensors scores.csv --observed a,b -o out.csv",
)


@pytest.mark.parametrize("command", ON_DEVICES)
def test_a_device_is_used_or_refused_in_a_line(command: str) -> None:
    refused = run(f"{command} --device cuda:99")
    assert refused.exit_code == 2
    (line,) = refused.output.splitlines()
    assert line.startswith("Error: The device 'cuda:99' cannot be used: ")
    assert not list(Path().glob("out*"))
    assert run(f"{command} --device cpu").exit_code == 0


@pytest.mark.parametrize("command", [f"soup a.pt b.pt {ON} -o out.pt", f"ensemble a.pt b.pt {ON}"])
def test_scores_in_another_precision_are_no_other_tasks_scores(command: str) -> None:
    own, half = (json.loads(run(f"{command} --json{more}").stdout) for more in ("", " --dtype bfloat16"))
    first, other = (found["singles"]["test"][0]["loss"] for found in (own, half))
    assert first != other
    assert first == pytest.approx(other, abs=0.05)
    assert json.loads(run(f"{command} --json").stdout)["singles"] == own["singles"]


def test_barrier_in_another_precision() -> None:
    command = f"barrier a.pt b.pt {ON} --points 3 --json"
    own, double = (json.loads(run(f"{command}{more}").stdout)["curves"]["linear"] for more in ("", " --dtype float64"))
    assert own["loss"] != double["loss"]
    assert own["loss"] == pytest.approx(double["loss"], abs=1e-5)
    assert "Unknown dtype 'half'" in run(f"{command} --dtype half").stderr


@pytest.mark.parametrize(
    "command",
    [
        "barrier wide-a.pt wide-b.pt --points 3 --matching weight-matching -o out.csv",
        "match wide-a.pt wide-b.pt --method activation-matching -o out.safetensors",
        "merge wide-a.pt wide-b.pt --align activation-matching -o out.pt",
    ],
)
def test_the_network_may_be_another_than_that_of_the_task(command: str) -> None:
    refused = run(f"{command} {ON}")
    assert refused.exit_code == 2
    assert not list(Path().glob("out*"))
    found = run(f"{command} {ON} --network signs.py:build,width=12 --json")
    assert found.exit_code == 0, found.output
    expected = run(f"{command} --task signs.py:wide --force --json")
    ours, theirs = (json.loads(result.stdout) for result in (found, expected))
    for key in ("curves", "objective", "scores", "barriers"):
        if isinstance(ours.get(key), dict) and key == "curves":
            assert ours[key]["naive"]["loss"] == theirs[key]["naive"]["loss"]
        else:
            assert ours.get(key) == theirs.get(key)


def test_inputs_by_name_reach_the_spec() -> None:
    Path("model.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)\n"
        "    def forward(self, ids, factor):\n"
        "        return self.head(self.embed(ids) * factor[..., None])\n"
    )
    given = "--network model.py:Two --input ids=2,5:int64:9 --input factor=2,5"
    found = run(f"spec {given} -o spec.yaml --json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["groups"] == {"embed": 8}
    refused = run("spec --network model.py:Two --input 2,5 -o spec.yaml")
    assert refused.exit_code == 2
    assert "cannot run on its example inputs ((2, 5) float32)" in refused.stderr


def test_networks_that_do_not_fit_the_task_are_named_by_their_files() -> None:
    result = run(f"barrier a.pt wide-b.pt {ON}")
    assert result.exit_code == 2
    assert "the network of signs and wide-b.pt do not fit together" in result.stderr


def test_an_object_in_place_of_a_checkpoint_is_told_its_option() -> None:
    result = run("spec signs.py:task")
    assert result.exit_code == 2
    assert "signs.py:task does not exist" in result.stderr
    assert "given with --task signs.py:task" in result.stderr


def test_a_name_that_a_file_does_not_define_lists_what_fits() -> None:
    """Imported names are not among them; functions without arguments are, which may return a task."""
    result = run("spec --task signs.py:tusk")
    assert "Unknown object in signs.py 'tusk'; expected one of build, load, task, wide. Did you mean" in result.stderr
    result = run("spec --network signs.py:nothing --input 1,6")
    assert "expected one of build, load, task, wide." in result.stderr
