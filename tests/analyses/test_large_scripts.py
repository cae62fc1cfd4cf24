"""The larger analyses from end to end on toys, and what their kept results must show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.tasks import ClassificationTask, Examples, TrainConfig, network_with

ANALYSES = Path(__file__).parents[2] / "analyses"

Script = Callable[[str], ModuleType]


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


def test_a_permuted_copy_is_found_again_and_all_figures_say_so(script: Script) -> None:
    task = script("recipe").digits_task(12)
    network = ws.train(task, 0, epochs=8)
    spec = ws.derive_spec(task.network(), task.example_args)
    moved = ws.permute(spec, ws.Permutation.random(spec, seed=3), network)
    row = script("pairs").measure(task, network, moved, points=5)
    assert row["matched"] == pytest.approx(0, abs=1e-5)
    assert row["naive"] > 0.1
    assert row["L2 reduction"] == pytest.approx(1)
    assert row["R_.3"] == pytest.approx(1)
    assert row["R_.3 before"] < 0.5


def test_the_accuracy_of_a_pair_is_that_of_the_worse_one(script: Script) -> None:
    task = script("recipe").digits_task(12)
    networks = [ws.train(task, 0, epochs=epochs) for epochs in (8, 1)]
    accuracies = [task.score(network_with(task, network))["accuracy"] for network in networks]
    assert accuracies[1] < accuracies[0]
    for order in (networks, networks[::-1]):
        assert script("pairs").measure(task, *order, points=3)["accuracy"] == accuracies[1]


@pytest.mark.parametrize(
    ("name", "changed"), [("width", "network"), ("learning-rate", "learning_rate"), ("weight-decay", "weight_decay")]
)
def test_a_sweep_changes_one_thing_of_the_recipe(script: Script, name: str, changed: str) -> None:
    sweep = script("sweeps").SWEEPS[name]
    first, *others = (script("recipe").description(sweep.task(value)) for value in sweep.values)
    for other in others:
        assert {key for key in first if first[key] != other[key]} == {"task", changed}


def test_a_sweep_runs_and_is_drawn(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps, digits_task = script("sweeps"), script("recipe").digits_task

    def small(width: float) -> ClassificationTask:
        return digits_task(int(width), recipe=TrainConfig(epochs=8))

    monkeypatch.setattr(sweeps, "SWEEPS", {"width": sweeps.Sweep("width", (8, 16), small)})
    found = sweeps.swept("width", [range(2), range(2, 4)], tmp_path)
    assert {width: list(rows) for width, rows in found.items()} == {key: ["0, 1", "2, 3"] for key in (8, 16)}
    sweeps.draw_sweeps({"width": found}, tmp_path / "sweeps.png")
    assert (tmp_path / "sweeps.png").stat().st_size > 10_000


def test_the_verdict_on_weight_decay_goes_by_the_median(script: Script) -> None:
    sweeps = script("sweeps")
    far = {"a": {"R_.3": 0.45}, "b": {"R_.3": 0.5}, "c": {"R_.3": 9.0}}
    assert [one["holds"] for one in sweeps.verdicts({0.0: far, 5e-3: far})] == [True, False]


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


def test_treatments_differ_only_between_the_endpoints(script: Script, tmp_path: Path) -> None:
    repair, task = script("repair"), toy_resnet(script)
    curves = repair.curves_by_method(task, *(ws.train(task, seed, epochs=2) for seed in (0, 1)))
    assert {label: curve.statistics for label, curve in curves.items()} == {
        "unmatched": "none",
        "matched": "none",
        "matched, reset": "reset",
        "matched, REPAIR": "repair",
    }
    ends = [(curve.loss[0], curve.loss[-1]) for curve in curves.values()]
    for found in ends[1:]:
        assert found == pytest.approx(ends[0], rel=1e-4)
    assert len({curve.loss[repair.POINTS // 2] for curve in curves.values()}) == 4
    row = repair.figures(curves)
    assert row["REPAIR removes"] == ws.barrier(curves["matched"]) - ws.barrier(curves["matched, REPAIR"])
    repair.draw_widths({0.25: {"0, 1": row}}, tmp_path / "repair.png")
    assert (tmp_path / "repair.png").stat().st_size > 10_000


def test_a_method_is_measured_and_drawn(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, task = script("methods"), script("recipe").digits_task(16, recipe=TrainConfig(epochs=8))
    monkeypatch.setattr(methods, "TASKS", {"toy": lambda: task})
    row = methods.run("weight-matching", "toy", (3, 4), tmp_path)
    states = [script("recipe").trained(task, seed, cache=tmp_path) for seed in (3, 4)]
    expected = script("pairs").measure(task, *states, points=methods.POINTS)
    assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    by_turns = methods.run("merge-many", "toy", (3, 4), tmp_path)  # of two networks that is weight matching
    assert by_turns["L2 reduction"] == pytest.approx(row["L2 reduction"], abs=0.02)
    assert by_turns["matched"] < by_turns["naive"]
    assert methods.middle({"3, 4": row, "5, 6": row}) == row
    assert methods.middle({"3, 4": row, "5, 6": None}) is None  # no median of those that were fast
    found = {"toy": {"weight-matching": {"3, 4": row}, "too slow": {"3, 4": None}}}
    methods.draw_methods(found, tmp_path / "methods.png")
    assert (tmp_path / "methods.png").stat().st_size > 10_000


def test_a_method_that_takes_too_long_is_ended(script: Script, tmp_path: Path) -> None:
    assert script("methods").within(0.1, "straight-through", "digits-mlp", (0, 1), tmp_path) is None


def test_the_kept_sweeps_show_what_is_claimed() -> None:
    found = kept("sweeps")
    assert [gate["holds"] for gate in found["gates"]] == [True, True]
    for name in ("learning-rate", "weight-decay"):
        alignments = [value["median"]["R_.3"] for value in found["sweeps"][name]]
        assert alignments == sorted(alignments)
    matched = [value["median"]["matched / naive"] for value in found["sweeps"]["width"]]
    assert matched == sorted(matched, reverse=True)


def test_the_kept_results_on_fashion_are_within_their_gates() -> None:
    assert [gate["holds"] for gate in kept("fashion")["gates"]] == [True] * 4


def test_in_the_kept_results_repair_lowers_the_barrier_of_every_width() -> None:
    """By the medians of six pairs; one pair in eighteen goes the other way, as analyses/README.md says."""
    widths = kept("repair")["widths"]
    assert [width["width"] for width in widths] == [0.25, 0.5, 1]
    for width in widths:
        assert width["median"]["matched, REPAIR"] < width["median"]["matched"]
        assert width["median"]["accuracy"] > 0.8
        assert len(width["rows"]) >= 5
    against = [label for width in widths for label, row in width["rows"].items() if row["REPAIR removes"] <= 0]
    assert against == ["1002, 1003"]


def test_the_kept_table_has_every_method_on_every_task(script: Script) -> None:
    methods, rows = script("methods"), kept("methods")["rows"]
    assert {task: set(table) for task, table in rows.items()} == {task: set(methods.METHODS) for task in methods.TASKS}
    labels = {script("recipe").label_of(seeds) for seeds in script("recipe").seed_groups(5)}
    assert all(set(by_pair) == labels for table in rows.values() for by_pair in table.values())


def test_in_the_kept_table_the_sinkhorn_estimator_connects_without_aligning() -> None:
    for rows in kept("methods")["median"].values():
        by_loss, by_weights = rows["straight-through-sinkhorn"], rows["weight-matching"]
        assert by_loss["matched / naive"] < 0.1
        assert by_loss["R_.3"] < 0.5 * by_weights["R_.3"]
