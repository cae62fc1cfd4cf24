"""The soup scripts on toys, and what their kept results say."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.tasks import ClassificationTask, Examples, TrainConfig
from weightspace.zoo.architectures import mlp

ANALYSES = Path(__file__).parents[2] / "analyses"
Script = Callable[[str], ModuleType]


def clusters() -> dict[str, Examples]:
    """Return points about three centres, further apart from them in the shifts."""
    splits = {}
    for seed, (split, spread) in enumerate({"train": 1, "validation": 1, "test": 1, "wide": 2, "wider": 3}.items()):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(240) % 3
        points = 2 * torch.eye(3)[labels] + spread * torch.randn(240, 3, generator=generator)
        splits[split] = Examples(points, labels)
    return splits


@pytest.fixture
def task() -> ClassificationTask:
    recipe = TrainConfig(epochs=2, learning_rate=1e-2)
    return ClassificationTask("clusters", partial(mlp, 3, (8,), 3), clusters, recipe=recipe)


@pytest.fixture
def states(task: ClassificationTask) -> dict[str, ws.StateDict]:
    # The same start, so that they lie in one basin: trained on for different lengths.
    return {f"{epochs} epochs": ws.train(task, 0, epochs=epochs) for epochs in (1, 2, 4)}


def test_every_recipe_is_scored_on_every_measure(
    script: Script, task: ClassificationTask, states: dict[str, ws.StateDict], tmp_path: Path, capsys
) -> None:
    soups, start = script("soups"), ws.train(task, 0, epochs=0)
    pot = soups.cook(task, start, states)
    assert set(pot.recipes) == set(soups.RECIPES)
    assert pot.recipes["best single"] == pot.singles[pot.best]
    assert pot.recipes["greedy soup"]["validation"] >= pot.recipes["best single"]["validation"]
    for scores in (pot.start, *pot.singles.values(), *pot.recipes.values()):
        assert set(scores) == {"validation", "in distribution", "shifted", "wide", "wider"}
        assert scores["shifted"] == pytest.approx((scores["wide"] + scores["wider"]) / 2)
    network = task.network()
    network.load_state_dict(states["4 epochs"])
    assert pot.singles["4 epochs"]["wide"] == pytest.approx(task.score(network, "wide")["accuracy"])
    pots = {"split 0": pot, "split 1": pot}
    soups.print_table(pots, start="start", measures=soups.MEASURES)
    printed = capsys.readouterr().out
    assert "| best single |" in printed
    assert "| 80.38 | 47.83 |" in printed
    soups.draw_scatter(pots, tmp_path / "scatter.png", start="start")
    assert (tmp_path / "scatter.png").stat().st_size > 10_000
    json.dumps(soups.as_data(pots))


def test_losing_to_the_best_single_model_is_reported(
    script: Script, task: ClassificationTask, states: dict[str, ws.StateDict]
) -> None:
    soups = script("soups")
    even = {measure: 0.5 for measure in soups.MEASURES}
    worse = {**even, "in distribution": 0.49}
    recipes = {recipe: even for recipe in soups.RECIPES}
    pots = {
        str(number): soups.Pot(even, {"a": even}, {**recipes, "greedy soup": scores}, ("a",), "a", "a")
        for number, scores in enumerate((even, worse))
    }
    said = soups.verdicts(pots)
    assert "greedy soup − best single, in distribution: +0.00, -1.00 points: LOSES in 1 of 2" in said
    assert "greedy soup − best single, validation: +0.00, +0.00 points: wins 0, ties 2" in said


def test_the_ensemble_sums_logits(script: Script, task: ClassificationTask, states: dict[str, ws.StateDict]) -> None:
    soups = script("soups")
    found = sum(soups.logits_of(task, state, "wider") for state in states.values())
    accuracy = float((found.argmax(1) == task.examples["wider"].labels).double().mean())
    assert soups.cook(task, states["1 epochs"], states).recipes["logit ensemble"]["wider"] == accuracy


def test_a_fine_tune_from_another_start_is_another(script: Script, task: ClassificationTask, tmp_path: Path) -> None:
    made = []

    def build(shift: float) -> torch.nn.Module:
        network = mlp(3, (8,), 3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(shift)
        made.append(shift)
        return network

    tasks = [ClassificationTask("same", partial(build, shift), clusters, recipe=task.recipe) for shift in (0.1, 0.2)]
    first, other = (script("soups").fine_tune(one, 0, tmp_path) for one in tasks)
    assert not torch.equal(first["head.bias"], other["head.bias"])
    count = len(made)
    again = script("soups").fine_tune(tasks[0], 0, tmp_path)
    assert torch.equal(first["head.bias"], again["head.bias"])
    assert len(made) <= count + 2, "it was not trained again"


def kept(name: str) -> Any:
    path = ANALYSES / "results" / f"{name}.json"
    return json.loads(path.read_text())


def kept_groups() -> dict[str, dict[str, Any]]:
    return {"clip": kept("soups_clip")["splits"], **kept("soups_text")["groups"]}


def test_in_the_kept_results_greedy_is_never_below_the_best_single_model_on_validation() -> None:
    groups = kept_groups()
    assert set(groups) == {"clip", "tweets", "movies", "products", "editorials", "across domains"}
    for pots in groups.values():
        assert len(pots) == 3
        for pot in pots.values():
            assert pot["gains"]["greedy soup"]["validation"] >= 0
            assert pot["recipes"]["best single"] == pot["singles"][pot["best"]]
    assert all(len(pot["singles"]) >= 8 for pot in groups["clip"].values())


def test_the_kept_results_show_what_is_claimed() -> None:
    groups = kept_groups()
    gains = {name: [pot["gains"] for pot in pots.values()] for name, pots in groups.items()}
    for gain in gains["clip"]:
        assert gain["uniform soup"]["shifted"] > 2
        assert gain["uniform soup"]["in distribution"] < 0
    for recipe in ("uniform soup", "greedy soup", "learned soup"):
        assert all(gain[recipe]["in distribution"] > 1 for gain in gains["across domains"])
    within = [gain for name in ("tweets", "movies", "products", "editorials") for gain in gains[name]]
    assert sum(gain["greedy soup"]["in distribution"] < 0 for gain in within) == 5
    assert sum(gain["learned soup"]["in distribution"] < 0 for gain in within) == 3
