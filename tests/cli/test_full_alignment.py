"""Alignment by all symmetries on the command line: match, merge --align, barrier and spectrum --matching."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli

CODE = """
from weightspace.tasks import ClassificationTask, TrainConfig
from weightspace.zoo.digits import digits_examples
from weightspace.zoo.vision_transformer import VisionTransformer

def build():
    return VisionTransformer(size=8, patch=2, channels=1, classes=10, width=16, depth=1, heads=2, hidden=24)

def task():
    recipe = TrainConfig(epochs=4, learning_rate=3e-3, cooldown=True)
    return ClassificationTask("digits-vit", build, digits_examples, recipe=recipe)
"""
TASK = ("--task", "task.py:task")


def run(*args: str) -> Result:
    return CliRunner().invoke(cli.main, args, prog_name="weightspace")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    (folder / "task.py").write_text(CODE)
    task = ws.load_task(f"{folder}/task.py:task")
    for seed, name in enumerate("abc"):
        ws.save_checkpoint(ws.train(task, seed), folder / f"{name}.safetensors")
    spec = ws.derive_spec(task.network(), task.example_args, symmetry="full")
    spec.save(folder / "full.yaml")
    ws.derive_spec(task.network(), task.example_args).save(folder / "permutations.yaml")
    return folder


@pytest.fixture
def folder(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for file in networks.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def accuracy(path: str) -> float:
    task = ws.load_task("task.py:task")
    network = task.network()
    network.load_state_dict(ws.load_checkpoint(path))
    return task.score(network)["accuracy"]


def test_a_merge_of_two_seeds_is_better_than_without_alignment(folder: Path) -> None:
    for name, options in (("naive", ()), ("aligned", ("--align", "full"))):
        result = run("merge", "a.safetensors", "b.safetensors", *options, *TASK, "-o", f"{name}.safetensors")
        assert result.exit_code == 0, result.output
    assert accuracy("aligned.safetensors") > accuracy("naive.safetensors") + 0.05
    metadata = ws.checkpoints.load_metadata("aligned.safetensors")
    assert json.loads(metadata["parameters"])["align"] == "full"
    merged = ws.load_checkpoint("aligned.safetensors")
    assert bool((merged["norm.weight"] == 1).all())  # norms are folded
    assert merged["norm.weight"].dtype == torch.float32


def test_a_merge_by_weights_needs_no_task(folder: Path) -> None:
    options = ("--align", "full-weights", "--network", "task.py:build", "--input", "2,1,8,8")
    result = run("merge", "a.safetensors", "b.safetensors", *options, "-o", "merged.safetensors")
    assert result.exit_code == 0, result.output
    again = run(
        "merge", "a.safetensors", "b.safetensors", "--align", "full-weights", "--spec", "full.yaml", "-o", "two"
    )
    assert again.exit_code == 0, again.output


def test_three_networks_are_aligned_to_the_first(folder: Path) -> None:
    files = ("a.safetensors", "b.safetensors", "c.safetensors")
    result = run("merge", *files, "--align", "full-activations", *TASK, "-o", "merged.safetensors")
    assert result.exit_code == 0, result.output
    assert run("merge", *files, *TASK, "-o", "naive.safetensors").exit_code == 0
    assert accuracy("merged.safetensors") > accuracy("naive.safetensors")


def test_match_writes_an_element(folder: Path) -> None:
    result = run("match", "a.safetensors", "b.safetensors", "--method", "full-weights", *TASK, "-o", "e.safetensors")
    assert result.exit_code == 0, result.output
    assert "inner product of the canonical weights" in result.stdout
    spec = ws.SymmetrySpec.load("full.yaml")
    element = ws.Element.load("e.safetensors", spec)
    a, b = (ws.load_checkpoint(f"{name}.safetensors") for name in "ab")
    expected = ws.align(spec, a, b).element.moves
    assert all(torch.equal(value, element.moves[name]) for name, value in expected.items())
    refused = run("permute", "b.safetensors", "e.safetensors", *TASK, "-o", "moved.safetensors")
    assert refused.exit_code == 2
    assert "Traceback" not in refused.output


def test_match_many_writes_elements_and_the_mean(folder: Path) -> None:
    files = ("a.safetensors", "b.safetensors", "c.safetensors")
    options = ("--method", "full-many", "--spec", "full.yaml", "--max-sweeps", "1")
    result = run("match", *files, *options, "-o", "elements", "--merged", "mean.safetensors")
    assert result.exit_code == 0, result.output
    spec = ws.SymmetrySpec.load("full.yaml")
    elements = [ws.Element.load(path, spec) for path in sorted(Path("elements").iterdir())]
    states = [ws.load_checkpoint(path) for path in files]
    moved = [one.apply(ws.canonicalise(spec, state)) for one, state in zip(elements, states, strict=True)]
    mean = {name: (sum(state[name] for state in moved) / 3).float() for name in states[0]}
    found = ws.load_checkpoint("mean.safetensors")
    assert all(torch.allclose(mean[name], found[name], atol=1e-6) for name in mean)


def test_barriers_and_spectra_after_matching(folder: Path) -> None:
    result = run("barrier", "a.safetensors", "b.safetensors", *TASK, "--matching", "full", "--points", "5", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    text = json.dumps(found)
    assert '"full"' in text
    options = ("--matching", "full-weights", "--spec", "full.yaml", "--against", "merged")
    result = run("spectrum", "a.safetensors", "b.safetensors", *options)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("merge", "--align", "full", "--network", "task.py:build", "--input", "2,1,8,8"), "'full' uses data"),
        (("merge", "--align", "full-weights", "--spec", "permutations.yaml"), "permutation spec"),
        (("merge", "--align", "weight-matching", "--spec", "full.yaml"), "only permutations can be used"),
        (("match", "--method", "full-activations", "--spec", "full.yaml"), "'full-activations' uses data"),
        (("match", "--method", "full-weights", *TASK, "--steps", "3"), "has no option 'steps'"),
        (("match", "--method", "ful", *TASK), "Did you mean 'full'"),
    ],
)
def test_mistakes_are_one_line(folder: Path, args: tuple[str, ...], message: str) -> None:
    command, *options = args
    result = run(command, "a.safetensors", "b.safetensors", *options, "-o", "out.safetensors")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not Path("out.safetensors").exists()
