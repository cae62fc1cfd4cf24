"""The larger analyses from end to end on toys, and what their kept results must show."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.tasks import ClassificationTask, Examples, Recipe

ANALYSES = Path(__file__).parents[2] / "analyses"

Script = Callable[[str], ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that imports a script as the others beside it do."""
    monkeypatch.syspath_prepend(ANALYSES)
    return importlib.import_module


def kept(name: str) -> Any:
    """Return the results of a script that the repository keeps."""
    return json.loads((ANALYSES / "results" / f"{name}.json").read_text())


def images_of_noise(*_: object) -> dict[Any, Examples]:
    """Return images of four classes, each brighter in a quarter of its own."""
    labels = torch.arange(96) % 4
    images = 0.3 * torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 4 * (label // 2) :, 4 * (label % 2) :] += 1
    return {split: Examples(images, labels) for split in ("train", "validation", "test")}


# --- What is measured ---


def test_a_permuted_copy_is_found_again_and_all_figures_say_so(script: Script) -> None:
    task = script("recipe").digits_task(12)
    network = ws.train(task, 0, epochs=1)
    spec = ws.derive_spec(task.network(), task.example_args)
    states = {0: network, 1: ws.permute(spec, ws.Permutation.random(spec, seed=3), network)}
    pair, curves = script("pairs").measure(task, states, (0, 1), points=5)
    assert pair.matched == pytest.approx(0, abs=1e-5)
    assert pair.naive > 0.01
    assert pair.l2_reduction == pytest.approx(1)
    assert pair.aligned == pytest.approx(1)
    assert pair.aligned_before < 0.9
    assert pair.accuracies == curves["as they are"].accuracy[:1] * 2


def test_medians_are_of_the_pairs_and_the_ratio_is_a_pair_s_own(script: Script) -> None:
    pairs = script("pairs")
    found = [
        pairs.Pair((i, i + 1), (0.9 + i / 100, 0.99), naive, matched, 0.1, 0.0, 0.5, 1.0)
        for i, (naive, matched) in enumerate([(1.0, 0.1), (4.0, 0.2), (2.0, 1.0)])
    ]
    middle = pairs.medians(found)
    assert middle["least_accuracy"] == 0.9
    assert (middle["naive"], middle["matched"]) == (2.0, 0.2)
    assert middle["matched_by_naive"] == 0.1


def test_neighbours_share_a_seed(script: Script) -> None:
    assert script("pairs").neighbours(3) == [(0, 1), (1, 2), (2, 3)]


# --- Sweeps ---


def test_a_sweep_changes_one_thing_of_the_recipe(script: Script) -> None:
    sweeps = script("sweeps")
    for name, sweep in sweeps.SWEEPS.items():
        described = [script("recipe").description(sweep.task(value)) for value in sweep.values]
        changed = {key for key in described[0] if described[0][key] != described[1][key]}
        assert changed - {"task"} == {{"width": "network"}.get(name, name.replace("-", "_"))}


def test_a_sweep_runs_and_is_drawn(script: Script, tmp_path: Path) -> None:
    sweeps, digits_task = script("sweeps"), script("recipe").digits_task
    found = {width: sweeps.sweep_pairs(digits_task(width, recipe=Recipe(epochs=1)), 2, 3, tmp_path) for width in (4, 8)}
    assert [pair.seeds for pair in found[8]] == [(0, 1), (1, 2)]
    sweeps.draw_sweeps({"width": found}, tmp_path / "sweeps.png")
    assert (tmp_path / "sweeps.png").stat().st_size > 10_000


# --- REPAIR ---


def toy_resnet(script: Script) -> ClassificationTask:
    build = script("resnet20").resnet20
    return ClassificationTask("toy", lambda: build(0.25, classes=4), images_of_noise, batch_size=48)


@pytest.mark.parametrize("width", [0.25, 0.5])
def test_the_resnet_has_twenty_layers_and_a_spec_that_holds(script: Script, width: float) -> None:
    network = script("resnet20").resnet20(width)
    layers = [name for name, part in network.named_modules() if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len([name for name in layers if "shortcut" not in name]) == 20
    example = (torch.randn(2, 1, 12, 12),)
    spec = ws.derive_spec(network, example)
    assert sum(spec.groups.values()) == width * 4 * (16 + 32 + 64)  # a stage: its output and three within blocks
    assert ws.verify_spec(spec, network, example)


def test_treatments_differ_between_the_ends_only(script: Script) -> None:
    repair, task = script("repair"), toy_resnet(script)
    states = [ws.train(task, seed, epochs=2) for seed in (0, 1)]
    rows, curves = repair.treated(task, *states, points=3)
    assert [(row.matched, row.statistics) for row in rows] == [
        (False, "none"),
        (True, "none"),
        (True, "reset"),
        (True, "repair"),
    ]
    ends = [(curve.loss[0], curve.loss[-1]) for curve in curves.values()]
    for found in ends[1:]:
        assert found == pytest.approx(ends[0], rel=1e-4)
    assert len({row.middle_loss for row in rows}) == 4
