"""Networks of the claims are trained once, kept under everything that decides them, and reported by their medians."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace.tasks import ClassificationTask, TrainConfig

Script = Callable[[str], ModuleType]


@pytest.fixture
def task(script: Script) -> ClassificationTask:
    return script("recipe").digits_task(8, recipe=TrainConfig(epochs=1))


def test_a_network_is_trained_once_also_by_two_who_ask_at_once(
    script: Script, task: ClassificationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    train = ws.train

    def counted(task: ClassificationTask, seed: int) -> ws.StateDict:
        asked.append(seed)
        return train(task, seed)

    monkeypatch.setattr(ws, "train", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: script("recipe").trained(task, 3, cache=tmp_path), range(2))
    assert asked == [3]
    expected = train(task, 3)
    for found in (first, second):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 32},
        {"augment": None},
        {"recipe": TrainConfig(epochs=2)},
        {"recipe": TrainConfig(epochs=1, learning_rate=2e-3)},
        {"recipe": TrainConfig(epochs=1, weight_decay=1e-3)},
        {"recipe": TrainConfig(epochs=1, optimizer="sgd")},
    ],
    ids=str,
)
def test_another_recipe_is_another_network(
    script: Script, task: ClassificationTask, tmp_path: Path, change: dict[str, Any]
) -> None:
    recipe = script("recipe")
    first, other = (recipe.trained(one, 0, cache=tmp_path) for one in (task, replace(task, **change)))
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_other_data_of_the_same_recipe_are_another_network(script: Script, tmp_path: Path) -> None:
    recipe, part = script("recipe"), script("merge_many").digits_part
    tasks = [recipe.digits_task(8, recipe=TrainConfig(epochs=1), load=partial(part, one, 2, 0)) for one in (0, 1)]
    first, other = (recipe.trained(task, 0, cache=tmp_path) for task in tasks)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_parts_of_the_digits_are_disjoint_and_together_all(script: Script) -> None:
    whole = script("recipe").digits_pixels()["train"]
    parts = [script("merge_many").digits_part(part, 3, 7)["train"] for part in range(3)]
    together = torch.cat([part.inputs.flatten(1) for part in parts])
    assert sorted(together.tolist()) == sorted(whole.inputs.flatten(1).tolist())
    counts = torch.stack([part.labels.bincount(minlength=10) for part in parts])
    shares = counts.max(0).values / counts.sum(0)
    assert shares.min() > 0.65
    assert float(shares.mean()) == pytest.approx(0.8, abs=0.03)


def test_the_pixels_of_the_recipe_go_from_0_to_1(script: Script) -> None:
    low, high = script("recipe").digits_pixels()["train"].inputs.aminmax()
    assert (float(low), float(high)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("relation", "verdicts"),
    [("<", [True, False, False]), ("≤", [True, True, False]), ("≥", [False, True, True]), (">", [False, False, True])],
)
def test_a_gate_is_a_bound(script: Script, relation: str, verdicts: list[bool]) -> None:
    gate = script("report").Gate("a claim", "figure", relation, 1.0)
    assert [gate.holds(value) for value in (0.5, 1.0, 1.5)] == verdicts
    assert [gate.verdict(value).endswith(": holds") for value in (0.5, 1.0, 1.5)] == verdicts


def test_a_shifted_image_is_the_image_elsewhere(script: Script) -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[..., 2, 2] = 1
    moved = script("recipes").shifted(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0), by=1)
    places = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert places == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))


def test_no_network_is_in_two_groups_and_none_chose_the_recipe(script: Script) -> None:
    recipe = script("recipe")
    groups = recipe.seed_groups(4, 3)
    assert [len(group) for group in groups] == [3] * 4
    seeds = {seed for group in groups for seed in group}
    assert len(seeds) == 12
    assert min(seeds) == recipe.FIRST_SEED == 1000


def test_a_script_measures_the_seeds_that_are_asked_for(
    script: Script, task: ClassificationTask, tmp_path: Path
) -> None:
    report = script("report")
    asked: list[object] = []

    def rows(groups: list[range], _: Path) -> Iterator[tuple[str, dict[str, float]]]:
        asked.extend(groups)
        yield "", {"barrier": 1.0}

    def draw(seeds: range, *_: Path) -> None:
        asked.append(seeds)

    command = report.script("name", "About.", task=task, rows=rows, gates=(), draw=draw, size=3)
    arguments = ["--output", str(tmp_path), "--first-seed", "7", "--pairs", "2"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert asked == [range(7, 10), range(10, 13), range(7, 10)]


def test_a_script_prints_every_row_the_median_and_the_gates_and_writes_them(
    script: Script, task: ClassificationTask, tmp_path: Path
) -> None:
    report = script("report")
    found = {"0, 1": {"barrier": 1.0}, "1, 2": {"barrier": 9.0}, "2, 3": {"barrier": 2.0}}
    gates = [report.Gate("Low", "barrier", "<", 3.0), report.Gate("High", "barrier", ">", 3.0)]
    command = report.script("name", "About.", task=task, rows=lambda *_: iter(found.items()), gates=gates)
    result = CliRunner().invoke(command, ["--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "learning rate 0.001" in result.output
    for line in ("| 1, 2 | 9.000 |", "| **median** | 2.000 |", "Low: barrier < 3, median 2.000: holds"):
        assert line in result.output
    assert "High: barrier > 3, median 2.000: DOES NOT HOLD" in result.output
    written = json.loads((tmp_path / "results" / "name.json").read_text())
    assert written["rows"] == found
    assert written["median"] == {"barrier": 2.0}
    assert [gate["holds"] for gate in written["gates"]] == [True, False]
    assert written["recipe"]["learning_rate"] == 1e-3
    assert written["environment"]["threads"] == torch.get_num_threads()
