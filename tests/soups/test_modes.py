"""Objectives of which less is better: the soup takes the best networks by them, never the worst."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kitchen import PLAIN, Erring, equal, examples, fine_tunes, plain_network

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.soups import SoupReport, compare_recipes, gain


def erring(objective: str, **more: Any) -> Erring:
    return Erring("erring", plain_network, examples, objective=objective, **more)


ERRORS = ["error", "mse", "rmse", "wer", "perplexity"]


@pytest.mark.parametrize("objective", ERRORS)
def test_the_greedy_soup_of_an_error_is_that_of_its_complement(objective: str) -> None:
    _, states = fine_tunes(PLAIN, 4)
    soup, expected = ws.greedy_soup(states, erring(objective)), ws.greedy_soup(states, PLAIN)
    assert soup.ingredients == expected.ingredients
    assert soup.scores == pytest.approx([score - 1 for score in expected.scores])
    assert equal(soup.state, expected.state)


@pytest.mark.parametrize("objective", ERRORS)
def test_wise_ft_and_the_table_improve_an_error(objective: str, tmp_path: Path) -> None:
    base, states = fine_tunes(PLAIN, 3)
    task = erring(objective)
    assert ws.wise_ft(base, states[0], task).position == ws.wise_ft(base, states[0], PLAIN).position
    report, expected = (compare_recipes(states, one, ("greedy",)) for one in (task, PLAIN))
    assert report.mode == "min"
    assert [row.chosen for row in report.rows] == [row.chosen for row in expected.rows]
    report.save(tmp_path / "r.json")
    assert SoupReport.load(tmp_path / "r.json") == report
    assert gain(base, *states[:2], task).gain == pytest.approx(gain(base, *states[:2], PLAIN).gain)


def test_an_objective_of_unknown_direction_stops_before_anything_is_scored() -> None:
    base, states = fine_tunes(PLAIN, 3)
    task = erring("quality")
    for call in (
        lambda: ws.greedy_soup(states, task),
        lambda: ws.wise_ft(base, states[0], task),
        lambda: compare_recipes(states, task),
        lambda: gain(base, *states[:2], task),
    ):
        with pytest.raises(WeightspaceError, match="objective 'quality'"):
            call()
    by_word, by_task = ws.greedy_soup(states, task, mode="min"), ws.greedy_soup(states, erring("quality", mode="min"))
    assert by_word.ingredients == by_task.ingredients == ws.greedy_soup(states, PLAIN).ingredients
    assert ws.wise_ft(base, states[0], task, mode="min").position == ws.wise_ft(base, states[0], PLAIN).position


def test_functions_are_minimised_on_request_and_errors_without_a_mode_stop() -> None:
    states: list[StateDict] = [{"w": torch.tensor([float(value)])} for value in (3, 1, 2)]

    def error(state: StateDict) -> float:
        return float(state["w"][0])

    soup = ws.greedy_soup(states, error, mode="min")
    assert soup.ingredients == (1,)
    assert soup.score == -1
    assert ws.greedy_soup(states, error, mode="max").ingredients == (0,)
    with pytest.raises(WeightspaceError, match=r"called 'error'.*mode=\"min\""):
        ws.greedy_soup(states, error)
    with pytest.raises(WeightspaceError, match="Unknown mode 'down'"):
        ws.greedy_soup(states, error, mode="down")  # type: ignore[arg-type]


def test_variants_of_a_task_keep_its_mode() -> None:
    assert replace(erring("quality", mode="min"), batch_size=3).mode == "min"
