"""Searches find a planted optimum, repeat from the cache, and tell how large a gain is."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError, WeightspaceWarning
from weightspace.merging import ReadingOptions
from weightspace.plots import draw_search
from weightspace.progress import Progress
from weightspace.searching import SearchOptions, SearchReport
from weightspace.searching.noise import Gain, gain_over
from weightspace.searching.report import SearchTrial
from weightspace.soups.evaluation import Place
from weightspace.soups.measures import TaskMeasure
from weightspace.tasks import ClassificationTask

from .conftest import PLANTED

ENGINES = ("grid", "random", "cma-es", "tpe", "nsga2")
TINY: dict[str, Any] = {
    "merge_method": "task_arithmetic",
    "base_model": "base.safetensors",
    "models": [{"model": f"{name}.safetensors", "parameters": {"weight": {"search": [0, 1]}}} for name in "ab"],
}


def digits_recipe(folder: Path, **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(folder / f"{name}.safetensors"), "parameters": {"weight": 0.5}} for name in "ab"]
    content = {"merge_method": "task_arithmetic", "base_model": str(folder / "base.safetensors"), "models": models}
    return {**content, "parameters": {"lambda": {"search": [0, 1.5]}, "normalize": False, **parameters}}


def without_noise(*arguments: Any, **options: Any) -> SearchReport:
    """Search without references, and so without a word on the gain."""
    chosen = options.pop("options", SearchOptions())
    return ws.search(*arguments, options=replace(chosen, references=False), **options)


@pytest.fixture(scope="module")
def best_factor(digits: ClassificationTask, trained: Path) -> float:
    """The best scaling factor of 101 along the line."""
    options = SearchOptions(engine="grid", trials=101)
    found = without_noise(digits_recipe(trained), digits, options=options)
    return found.trials[found.best].values["parameters.lambda"]


@pytest.mark.xdist_group("planted factor")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_planted_scaling_factor_is_found(
    engine: str, digits: ClassificationTask, trained: Path, best_factor: float
) -> None:
    found = without_noise(digits_recipe(trained), digits, options=SearchOptions(engine=engine, trials=36))
    assert abs(found.trials[found.best].values["parameters.lambda"] - best_factor) < 0.05
    assert found.modes == {"digits-mlp": "min"}


def test_the_planted_factor_is_where_it_was_planted(digits: ClassificationTask, trained: Path) -> None:
    # λ / 2 (τ_a + τ_b) = λ / (2 · PLANTED) · (trained − base): the whole way is λ = 2 · PLANTED.
    recipe = digits_recipe(trained)
    recipe["parameters"]["lambda"] = {"choices": [2 * PLANTED]}
    found = without_noise(recipe, digits, options=SearchOptions(engine="grid"))
    expected = ws.train(digits, seed=0, epochs=6)
    network = digits.network()
    network.load_state_dict(expected)
    score = digits.score(network, "validation")["loss"]
    assert found.trials[0].scores["digits-mlp"] == pytest.approx(score, abs=1e-3)


def test_several_values_are_found_by_a_function(tiny: Path) -> None:
    states = {name: ws.load_checkpoint(f"{name}.safetensors") for name in ("base", "a", "b")}
    target = {k: b + 0.3 * (states["a"][k] - b) + 0.8 * (states["b"][k] - b) for k, b in states["base"].items()}

    def distance(state: ws.StateDict) -> float:
        return sum(float((state[name] - tensor).square().sum()) for name, tensor in target.items())

    options = SearchOptions(trials=120, cache=False)
    found = without_noise(TINY, distance, mode="min", options=options)
    assert list(found.trials[found.best].values.values()) == pytest.approx([0.3, 0.8], abs=0.05)


def test_an_interrupted_search_goes_on(tiny: Path) -> None:
    calls = []

    def score(state: ws.StateDict) -> float:
        calls.append(1)
        return float(state["v"].sum())

    def stop(event: Progress) -> None:
        if event.index == 5:
            raise KeyboardInterrupt

    options = SearchOptions(trials=12, cache_key="sum")
    with pytest.raises(KeyboardInterrupt):
        without_noise(TINY, score, options=options, on_progress=stop)
    whole = without_noise(TINY, score, options=options)
    assert len(calls) == 12
    assert without_noise(TINY, score, options=options).trials == whole.trials
    assert len(calls) == 12
    ws.save_checkpoint(ws.load_checkpoint("b.safetensors"), "a.safetensors")
    without_noise(TINY, score, options=options)
    assert len(calls) == 24


def test_equal_recipes_are_scored_once(tiny: Path) -> None:
    calls = []

    def score(state: ws.StateDict) -> float:
        calls.append(1)
        state["v"].zero_()  # its own copy
        return float(state["w"].sum())

    content = {**TINY, "models": [{"model": {"choices": ["a.safetensors", "b.safetensors"]}}]}
    found = without_noise(content, score, options=SearchOptions(engine="random", trials=20, cache_key="w"))
    assert (len(found.trials), len(calls)) == (20, 2)


def test_workers_give_the_same_result(digits: ClassificationTask, trained: Path, tmp_path: Path) -> None:
    options = SearchOptions(engine="random", trials=4, cache=False)
    alone = without_noise(digits_recipe(trained), digits, options=options)
    together = without_noise(digits_recipe(trained), digits, options=replace(options, place=Place(workers=2)))
    assert [trial.scores for trial in alone.trials] == [trial.scores for trial in together.trials]


def test_impossible_merges_are_passed_over(tiny: Path) -> None:
    content = {**TINY, "merge_method": "della", "parameters": {"density": 0.5, "epsilon": {"choices": [0.1, 0.7]}}}
    found = without_noise(content, lambda state: 1.0, options=SearchOptions(engine="grid", trials=8))
    assert ["keep probabilities" in trial.error for trial in found.trials] == [False, True] * 4
    content["parameters"] = {"density": 0.5, "epsilon": {"choices": [0.7]}}
    with pytest.raises(
        WeightspaceError, match=r"No candidate can be merged and scored\. The first one: .*keep probabilities"
    ):
        without_noise(content, lambda state: 1.0, options=SearchOptions(engine="grid", trials=8))


def test_halving_scores_few_candidates_on_all_data(digits: ClassificationTask, trained: Path) -> None:
    options = SearchOptions(engine="grid", trials=18, halving=True)
    found = without_noise(digits_recipe(trained), digits, options=options)
    shares = [round(9 * trial.share) for trial in found.trials]
    assert [shares.count(parts) for parts in (1, 3, 9)] == [12, 4, 2]
    assert found.trials[found.best].share == 1
    whole = without_noise(digits_recipe(trained), digits, options=SearchOptions(engine="grid", trials=18))
    assert abs(found.best - whole.best) <= 1
    with pytest.raises(WeightspaceError, match="from which the engine cma-es cannot learn"):
        without_noise(digits_recipe(trained), digits, options=SearchOptions(halving=True))
    with pytest.raises(WeightspaceError, match="score has none"):
        without_noise(digits_recipe(trained), lambda state: 1.0, options=options)


@pytest.fixture
def compared(digits: ClassificationTask, trained: Path) -> SearchReport:
    with pytest.warns(WeightspaceWarning, match="The gain over"):
        return ws.search(digits_recipe(trained), replace(digits, objective="accuracy", mode="max"))


def test_simple_merges_are_compared_on_test_data(compared: SearchReport, tmp_path: Path) -> None:
    names = ["best single model", "uniform", "task arithmetic, λ tuned", "TIES, defaults", "best of the search"]
    assert [row.name for row in compared.rows] == names
    validation, test = (
        [row.scores["digits-mlp"][split]["accuracy"] for row in compared.rows] for split in ("validation", "test")
    )
    assert validation[-1] == compared.trials[compared.best].scores["digits-mlp"]
    assert all(0.5 < value <= 1 for value in test)
    assert compared.gain is not None
    assert compared.gain.low <= compared.gain.value <= compared.gain.high
    assert compared.gain.value == pytest.approx(validation[-1] - max(validation[:-1]), abs=1e-9)
    compared.save(tmp_path / "search.json")
    assert len(json.loads((tmp_path / "search.json").read_text())["trials"]) == 50
    compared.save(tmp_path / "best.yml")
    assert (tmp_path / "best.yml").read_text().endswith(compared.recipe)
    with pytest.raises(WeightspaceError, match=r"found 'search\.csv'"):
        compared.save(tmp_path / "search.csv")
    draw_search(compared, tmp_path / "search.png")


@pytest.mark.parametrize(
    ("gain", "line"),
    [
        (
            Gain(-0.003333, -0.01, 0.002),
            "No gain over 'best single model' on the validation data: -0.00333 (95 % interval -0.01 to +0.002)",
        ),
        (Gain(0.001, -0.01, 0.012), "The gain over 'best single model' on the validation data is within its noise: "),
    ],
)
def test_no_gain_is_said_so(
    gain: Gain, line: str, digits: ClassificationTask, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["weightspace.searching.search"], "gain_over", lambda *_, **__: gain)
    with pytest.warns(WeightspaceWarning, match="over '") as caught:
        ws.search(digits_recipe(trained), digits, options=SearchOptions(trials=1))
    (message,) = (str(one.message) for one in caught)
    assert re.sub("over '[^']*'", "over 'best single model'", message).startswith(line)


def test_scores_on_a_part_of_the_data_are_drawn_where_they_are(tmp_path: Path) -> None:
    trials = [
        SearchTrial(index, {}, {"toy": score}, share)
        for index, (score, share) in enumerate([(0.95, 1.0), (0.96, 1.0), (1.0, 0.1), (0.5, 0.1)])
    ]
    report = SearchReport("random", 0, {"toy": "accuracy"}, {"toy": "max"}, tuple(trials), 1, (1,), (), "")
    figure: Any = draw_search(report, tmp_path / "s.png")
    trials_of = [line for line in figure.axes[0].lines if line.get_label().startswith("trials")]
    drawn = [score for line in trials_of for score in line.get_ydata()]
    assert {0.95, 0.96, 1.0} <= set(drawn)


class Toy:
    """A task whose score is the distance of one weight to a number."""

    objective, mode, example_args = "distance", "min", (torch.zeros(1, 1),)

    def __init__(self, name: str, goal: float) -> None:
        self.name, self.goal = name, goal

    def network(self) -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def score(self, module: Any, split: str = "test") -> dict[str, float]:
        return {"distance": abs(module.weight.item() - self.goal)}

    def batches(self, split: str, seed: int) -> list[Any]:
        return []

    def loss(self, module: Any, batch: Any) -> torch.Tensor:
        return torch.zeros(())


def test_several_tasks_have_a_front(tiny: Path) -> None:
    for name, value in {"base": 0.0, "a": 1.0}.items():
        ws.save_checkpoint({"weight": torch.tensor([[value]])}, f"{name}.safetensors")
    content = {**TINY, "models": [{"model": "a.safetensors", "parameters": {"weight": {"search": [-1, 2]}}}]}
    tasks: Any = [Toy("low", 0.2), Toy("high", 0.8)]
    found = ws.search(content, tasks, options=SearchOptions(trials=40))
    values = [found.trials[index].values["models[0].parameters.weight"] for index in found.front]
    assert found.engine == "nsga2"
    assert all(0.1 < value < 0.9 for value in values)
    assert found.best in found.front
    assert found.gain is None
    names = ["best single model", "task arithmetic, λ tuned", "TIES, defaults", "best of the search"]
    assert [row.name for row in found.rows] == names
    draw_search(found, "front.png")
    with pytest.raises(WeightspaceError, match="expected different names"):
        ws.search(content, [tasks[0], tasks[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SearchOptions(engine="annealing"), "annealing"),
        (SearchOptions(engine="grid", trials=3), "has at least 4 points; the budget is 3 trials"),
        (SearchOptions(trials=0), "trials is 0; expected a whole number of at least 1"),
        (SearchOptions(seconds=-1.0), "seconds is -1.0; expected a number above 0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: SearchOptions, message: str, tiny: Path) -> None:
    with pytest.raises(WeightspaceError, match=message):
        ws.search(TINY, lambda state: 1.0, options=options)


def test_a_budget_in_seconds_ends_a_search(tiny: Path) -> None:
    found = without_noise(TINY, lambda state: 1.0, options=SearchOptions(trials=10**6, seconds=0.5, cache=False))
    assert 1 <= len(found.trials) < 10**6


@pytest.mark.parametrize("halving", [True, False])
def test_a_budget_that_is_over_at_once_gives_one_scored_candidate(
    halving: bool, digits: ClassificationTask, trained: Path
) -> None:
    options = SearchOptions(engine="random", trials=4, seconds=1e-9, halving=halving)
    found = without_noise(digits_recipe(trained), digits, options=options)
    assert [trial.share for trial in found.trials].count(1) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_passed_over(value: float, tiny: Path) -> None:
    def score(state: ws.StateDict) -> float:
        total = float(state["w"].sum())
        return total if total > 0 else value

    found = without_noise(TINY, score, options=SearchOptions(engine="random", trials=8))
    errors = {trial.error for trial in found.trials}
    assert errors == {"", "The score is not finite."}
    assert found.trials[found.best].scores["score"] > 0


def test_misspelled_parameters_are_refused(tiny: Path) -> None:
    content = {**TINY, "parameters": {"lamda": {"search": [0, 1]}}}
    with pytest.raises(WeightspaceError, match=r"Unknown key in the recipe: 'parameters\.lamda'"):
        without_noise(content, lambda state: 1.0)


def test_scores_of_another_entry_are_not_those_of_this_one(tiny: Path) -> None:
    torch.save({"x": {"v": torch.zeros(2)}, "y": {"v": torch.zeros(2)}}, "base.pt")
    torch.save({"x": {"v": torch.zeros(2)}, "y": {"v": torch.ones(2)}}, "a.pt")
    models = [{"model": "a.pt", "parameters": {"weight": {"choices": [0.5]}}}]
    content = {**TINY, "base_model": "base.pt", "models": models}
    options = SearchOptions(engine="grid", trials=1, cache_key="sum")
    scores = [
        without_noise(content, lambda state: float(state["v"].sum()), options=options, reading=ReadingOptions(key))
        .trials[0]
        .scores["score"]
        for key in "xy"
    ]
    assert scores == [0, 1]


def test_models_that_change_while_they_are_scored_are_refused(tiny: Path) -> None:
    def score(state: ws.StateDict) -> float:
        ws.save_checkpoint(ws.load_checkpoint("b.safetensors"), "a.safetensors")
        return 1.0

    with pytest.raises(CheckpointError, match=r"a\.safetensors has changed while it was scored"):
        without_noise(TINY, score, options=SearchOptions(trials=2, cache_key="changing"))


def test_the_gain_is_the_difference_of_the_scores_for_unequal_parts(digits: ClassificationTask) -> None:
    inputs, labels = digits.examples["validation"]
    few = replace(digits, load=lambda: {**digits.examples, "validation": (inputs[:50], labels[:50])})
    measure = TaskMeasure(replace(few, objective="accuracy", mode="max"), "none", None, "gain", "max")
    states = [ws.train(digits, seed=0, epochs=epochs) for epochs in (1, 2)]
    scores = [measure.scores(state.items(), ("validation",), mixed=False)["validation"]["accuracy"] for state in states]
    gain = gain_over(measure, (states[1], False), (states[0], False), seed=0)
    measure.forget()
    assert gain is not None
    assert gain.value == pytest.approx(scores[1] - scores[0], abs=1e-6)
    assert gain.low <= gain.value <= gain.high
