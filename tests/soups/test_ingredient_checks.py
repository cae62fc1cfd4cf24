"""Ingredients are checked against each other before anything is scored, and left as they are."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kitchen import PLAIN, TASK, equal, fine_tunes, saved

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError, WeightspaceWarning
from weightspace.soups import compare_recipes, ensemble, flatness, gain, soup_against_ensemble

Make = Callable[[list[StateDict], Any], Any]

RECIPES: dict[str, Make] = {
    "uniform": lambda states, task: ws.uniform_soup(states),
    "greedy": lambda states, task: ws.greedy_soup(states, task, cache=False),
    "learned": lambda states, task: ws.learned_soup(states, task, epochs=1),
    "wise-ft": lambda states, task: ws.wise_ft(states[0], states[-1], task, (0.0, 1.0), cache=False),
    "ensemble": lambda states, task: ensemble(states, task, cache=False),
    "compared": lambda states, task: compare_recipes(states, task, ("uniform",), cache=False),
    "flatness": lambda states, task: flatness(states[0], states[1:], task, directions=1),
    "gain": lambda states, task: gain(states[0], states[1], states[2], task),
    "against an ensemble": lambda states, task: soup_against_ensemble(states[0], states[2], task, scale=1.0),
}


def counting(task: Any) -> Any:
    """Return a task that counts how often it scores."""

    class Counting(type(task)):
        calls = 0

        def score(self, module: Any, split: Any = "test") -> Any:
            Counting.calls += 1
            return super().score(module, split)

    return Counting(task.name, task.build, task.load)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named_before_anything_is_scored(recipe: str, value: float) -> None:
    _, states = fine_tunes(PLAIN, 3)
    states[2]["2.weight"][1, 3] = value
    task = counting(PLAIN)
    with pytest.raises(CheckpointError, match=r"^[12]: '2.weight' has NaN or infinity in 1 of 36 elements"):
        RECIPES[recipe](states, task)
    assert task.calls == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_other_shapes_are_found_before_anything_is_scored(recipe: str) -> None:
    _, states = fine_tunes(PLAIN, 3)
    states[2]["2.weight"] = states[2]["2.weight"][:, :5]
    task = counting(PLAIN)
    with pytest.raises(CheckpointError, match=r"do not fit"):
        RECIPES[recipe](states, task)
    assert task.calls == 0


@pytest.mark.parametrize("kind", ["shape", "name", "nan", "integers"])
def test_functions_are_not_called_for_ingredients_that_do_not_fit_together(kind: str, tmp_path: Path) -> None:
    _, states = fine_tunes(PLAIN, 3)
    for number, state in enumerate(states):
        state["index"] = torch.arange(3) + (kind == "integers" and number == 2)
    if kind == "shape":
        states[2]["2.weight"] = states[2]["2.weight"][:2]
    elif kind == "name":
        states[2]["3.weight"] = states[2].pop("2.weight")
    elif kind == "nan":
        states[2]["2.weight"][0] = math.nan
    calls: list[int] = []

    def score(state: StateDict) -> float:
        calls.append(1)
        return 0.0

    paths = saved(states, tmp_path)
    for ingredients in (states, paths):
        with pytest.raises(WeightspaceError, match=r"do not fit|NaN|cannot be averaged"):
            ws.greedy_soup(ingredients, score)
    assert not calls


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_function_may_change_what_it_is_given(executor: str) -> None:
    _, states = fine_tunes(TASK, 3)
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in states]

    def greedy(state: StateDict) -> float:
        value = float(state["0.weight"].sum())
        for tensor in state.values():
            tensor.zero_()
        state.clear()
        return value

    def modest(state: StateDict) -> float:
        return float(state["0.weight"].sum())

    soup = ws.greedy_soup(states, greedy, executor=executor)
    assert all(equal(state, copy) for state, copy in zip(states, copies, strict=True))
    expected = ws.greedy_soup(states, modest)
    assert (soup.ingredients, soup.scores) == (expected.ingredients, expected.scores)
    assert equal(soup.state, expected.state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_a_mask_that_all_have_stays_and_one_that_some_lack_is_refused(dtype: torch.dtype) -> None:
    mask = torch.tensor([0.0, -math.inf, math.inf]).to(dtype)
    states = [{"w": torch.tensor([1.0 + number]), "mask": mask.clone()} for number in range(3)]
    soup = ws.uniform_soup(states)
    assert soup["mask"].float().tolist() == [0.0, -math.inf, math.inf]
    assert soup["w"].item() == 2
    for place, value in ((0, math.inf), (1, 0.0), (1, math.inf), (2, math.nan)):
        other = [*states[:2], {"w": states[2]["w"], "mask": mask.clone()}]
        other[2]["mask"] = mask.float().index_fill(0, torch.tensor([place]), value).to(dtype)
        for order in (other, other[::-1]):
            with pytest.raises(CheckpointError, match=r"'mask' (is infinite at other positions than in 0|has NaN)"):
                ws.uniform_soup(order)


def test_a_large_number_is_no_infinity() -> None:
    first, second = ({"mask": torch.tensor([value], dtype=torch.float64)} for value in (math.inf, 1e300))
    for states in ([first, second], [second, first]):
        with pytest.raises(CheckpointError, match="'mask'"):
            ws.uniform_soup(states)


def test_nan_that_all_have_is_no_mask() -> None:
    with pytest.raises(CheckpointError, match=r"^0: 'w' has NaN"):
        ws.uniform_soup([{"w": torch.tensor([math.nan])}] * 2)


def test_a_greedy_soup_takes_no_file_twice(tmp_path: Path) -> None:
    _, states = fine_tunes(PLAIN, 2)
    a, b = saved(states, tmp_path)
    (tmp_path / "link.safetensors").symlink_to(a)
    for again in (a, tmp_path / "link.safetensors", f"{tmp_path}/./{a.name}"):
        with pytest.raises(WeightspaceError, match="are the same file"):
            ws.greedy_soup([a, b, again], PLAIN)
    assert len(ws.greedy_soup([a, b, a], PLAIN, replacement=True).trials) > 2


def test_equal_ingredients_are_reported(tmp_path: Path) -> None:
    _, states = fine_tunes(PLAIN, 2)
    with pytest.warns(WeightspaceWarning, match="0 and 2 are equal"):
        ws.greedy_soup([*states, dict(states[0])], PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightspaceWarning)
        ws.greedy_soup(states, PLAIN)
