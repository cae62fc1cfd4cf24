"""Recipes side by side, ensembles beside soups, predictions, and what surrounds a soup."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kitchen import PLAIN, TASK, equal, examples, fine_tunes, saved
from torch import Tensor, nn

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.plots import draw_points, draw_predictions, draw_soups
from weightspace.soups import (
    SoupAgainstEnsemble,
    SoupReport,
    agreement,
    angle,
    compare_recipes,
    ensemble,
    flatness,
    gain,
    soup_against_ensemble,
)
from weightspace.tasks import ClassificationTask, network_with


class Ensemble(nn.Module):
    """The oracle: all networks at once."""

    def __init__(self, task: ClassificationTask, states: Any) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network_with(task, state) for state in states)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([network(inputs).double() for network in self.networks]).mean(0).float()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_ensemble_is_that_of_all_networks_at_once(count: int, tmp_path: Path) -> None:
    _, states = fine_tunes(TASK, count)
    found = ensemble(saved(states, tmp_path), TASK)
    for split, scores in found.items():
        expected = TASK.score(Ensemble(TASK, states), split)  # type: ignore[arg-type]
        assert scores["accuracy"] == expected["accuracy"]
        assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_every_row_has_the_scores_of_its_network() -> None:
    _, states = fine_tunes(TASK, 4)
    made: dict[str, Any] = {}
    report = compare_recipes(states, TASK, on_state=lambda name, state: made.update({name: state}))
    rows = {row.name: row for row in report.rows}
    assert set(made) == {"uniform", "greedy", "learned"}
    assert equal(made["greedy"], ws.greedy_soup(states, TASK).state)
    assert equal(made["uniform"], ws.uniform_soup(states, TASK))
    for name, state in made.items():
        for split in ("validation", "test"):
            assert rows[name].scores[split] == TASK.score(network_with(TASK, state), split)  # type: ignore[arg-type]
    singles = [TASK.score(network_with(TASK, state), "test")["accuracy"] for state in states]
    assert [scores["accuracy"] for scores in report.singles["test"]] == singles
    assert rows["best single on test"].scores["test"]["accuracy"] == max(singles)


class Shifted(ClassificationTask):
    """A task with two further splits."""

    shifts = ("near", "far")

    def _split(self, split: Any) -> Any:
        if split not in self.shifts:
            return super()._split(split)
        inputs, labels = self.examples["test"]
        return type(self.examples["test"])(inputs + (0.5 if split == "near" else 1.5), labels)


def test_shifts_of_a_task_are_scored_and_drawn(tmp_path: Path) -> None:
    task = Shifted("shifted", PLAIN.build, examples)
    _, states = fine_tunes(PLAIN, 3)
    report = compare_recipes(states, task, ("uniform", "greedy"))
    assert report.shifts == ("near", "far")
    row = report.rows[1]
    assert set(row.scores) == {"validation", "test", "near", "far"}
    assert report.shifted(row.scores) == (row.scores["near"]["accuracy"] + row.scores["far"]["accuracy"]) / 2
    draw_soups(report, tmp_path / "soups.svg")
    assert "accuracy, mean of 2 shifts" in (tmp_path / "soups.svg").read_text()
    report.save(tmp_path / "soups.json")
    assert SoupReport.load(tmp_path / "soups.json") == report


def test_files_that_hold_no_report_are_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"rows": 3}'):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(WeightspaceError, match=r"isn't a report of soups|is not valid JSON|expected an object"):
            SoupReport.load(tmp_path / "r.json")
    with pytest.raises(WeightspaceError, match="cannot be read"):
        SoupReport.load(tmp_path / "gone.json")
    with pytest.raises(WeightspaceError, match="Unknown recipe 'broth'"):
        compare_recipes(fine_tunes(PLAIN, 1)[1], PLAIN, ["broth"])


def test_losses_of_soup_and_ensemble_are_those_of_the_networks() -> None:
    _, (a, b) = fine_tunes(PLAIN, 2)
    found = soup_against_ensemble(a, b, PLAIN, scale=1.0)
    middle = network_with(PLAIN, ws.interpolate(a, b, 0.5))
    assert found.soup == PLAIN.score(middle)["loss"]
    assert found.ensemble == pytest.approx(PLAIN.score(Ensemble(PLAIN, (a, b)))["loss"], rel=1e-6)
    inputs, _ = PLAIN.examples["test"]
    with torch.no_grad():
        apart = (network_with(PLAIN, b)(inputs) - network_with(PLAIN, a)(inputs)).double()
        weights = middle(inputs).double().softmax(1)
    mean = (weights * apart).sum(1)
    variance = float(((weights * apart**2).sum(1) - mean**2).mean())
    assert found.variance == pytest.approx(variance, rel=1e-5)
    assert found.predicted == pytest.approx((found.variance - found.curvature) / 8)


def test_of_a_network_that_is_linear_in_its_weights_soup_and_ensemble_are_the_same_and_so_it_is_predicted() -> None:
    linear = ClassificationTask("linear", lambda: nn.Linear(6, 4).double(), _doubles)
    _, states = fine_tunes(linear, 3)
    for a, b in itertools.combinations(states, 2):
        for position in (0.3, 0.5):
            found = soup_against_ensemble(a, b, linear, position=position, scale=1.0)
            assert found.difference == pytest.approx(0, abs=1e-12)
            assert found.predicted == pytest.approx(0, abs=2e-3 * found.variance)  # of the second difference


def _doubles() -> Any:
    return {split: one._replace(inputs=one.inputs.double()) for split, one in examples().items()}


def test_agreement_is_correlation_and_share_of_signs() -> None:
    pairs = [
        SoupAgainstEnsemble(0.5, soup, 1.0, predicted, 0, 0, 1)
        for soup, predicted in zip((1.1, 1.2, 0.9, 1.3), (0.2, 0.4, -0.2, -0.1), strict=True)
    ]
    found = agreement(pairs)
    assert (found.sign, found.pairs) == (0.75, 4)
    assert found.correlation == pytest.approx(0.0525 / (0.2275 * 0.0875) ** 0.5)
    with pytest.raises(WeightspaceError, match="at least three pairs; found 2"):
        agreement(pairs[:2])
    with pytest.raises(WeightspaceError, match="between 0 and 1"):
        soup_against_ensemble({}, {}, PLAIN, position=1.0)


def test_angles_and_gains() -> None:
    start = {"w": torch.zeros(2), "n.running_mean": torch.zeros(2)}
    a, b = ({"w": torch.tensor(w), "n.running_mean": torch.tensor(w[::-1])} for w in ([1.0, 0.0], [1.0, 1.0]))
    assert angle(start, a, b) == pytest.approx(45)
    assert angle(start, a, a) == pytest.approx(0, abs=1e-5)
    with pytest.raises(WeightspaceError, match="angle is undefined"):
        angle(start, start, a)
    base, (first, second) = fine_tunes(PLAIN, 2)
    found = gain(base, first, second, PLAIN)
    mean = PLAIN.score(network_with(PLAIN, ws.interpolate(first, second, 0.5)))["accuracy"]
    ends = [PLAIN.score(network_with(PLAIN, state))["accuracy"] for state in (first, second)]
    assert found.gain == pytest.approx(mean - sum(ends) / 2)
    assert found.angle == angle(base, first, second)


def test_flatness_begins_at_the_soup_and_ends_at_the_ingredients() -> None:
    _, states = fine_tunes(PLAIN, 3)
    soup = ws.uniform_soup(states)
    found = flatness(soup, states, PLAIN, directions=2, radii=(0, 0.5, 2), points=3)
    loss = PLAIN.score(network_with(PLAIN, soup))["loss"]
    assert [losses[0] for losses in found.random] == [loss, loss]
    assert found.random[0] != found.random[1]
    assert max(losses[2] for losses in found.random) > loss
    for line, state in zip(found.lines, states, strict=True):
        assert line.loss[0] == loss
        assert line.loss[-1] == PLAIN.score(network_with(PLAIN, state))["loss"]
    again = flatness(soup, states, PLAIN, directions=2, radii=(0, 0.5, 2), points=3)
    assert again == found


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_predictions_are_drawn_alike(suffix: str, tmp_path: Path) -> None:
    pairs = [SoupAgainstEnsemble(0.5, 1.0 + at, 1.0, 0.9 * at, 0, 0, 1) for at in (0.1, -0.2, math.inf)]
    for name in "ab":
        draw_predictions(pairs, tmp_path / f"{name}{suffix}", colours=[1, 2, 3], label="angle", title="pairs")
        draw_points([1, 2], [0.1, -0.1], tmp_path / f"{name}-points{suffix}", labels=("angle", "gain"))
    for kind in ("", "-points"):
        assert (tmp_path / f"a{kind}{suffix}").read_bytes() == (tmp_path / f"b{kind}{suffix}").read_bytes()
    with pytest.raises(WeightspaceError, match="no pairs to draw"):
        draw_predictions([], tmp_path / "c.png")


def test_the_objective_may_be_a_loss(tmp_path: Path) -> None:
    task = replace(PLAIN, objective="loss")
    report = compare_recipes(fine_tunes(PLAIN, 3)[1], task, ("greedy",))
    best, greedy, oracle = report.rows
    assert greedy.scores["validation"]["loss"] <= best.scores["validation"]["loss"]
    assert oracle.scores["test"]["loss"] == min(scores["loss"] for scores in report.singles["test"])


@pytest.mark.parametrize("recipe", ["uniform", "learned", "ensemble"])
def test_only_a_greedy_soup_scores_and_tells_its_candidates(recipe: str) -> None:
    _, states = fine_tunes(PLAIN, 3)
    told: list[Any] = []
    report = compare_recipes(states, PLAIN, [recipe], on_progress=told.append)
    assert [(event.stage, event.index, event.total) for event in told] == [("trial", n, 3) for n in (1, 2, 3)]
    assert all("accepted" not in event.details for event in told)
    assert [row.name for row in report.rows] == ["best single", recipe, "best single on test"]
