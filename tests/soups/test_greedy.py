"""The greedy soup: no worse than the best ingredient where it was chosen, whatever the scores."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kitchen import PLAIN, TASK, equal, fine_tunes, saved

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.progress import Progress
from weightspace.tasks import network_with

vectors = st.lists(st.lists(st.integers(-5, 5), min_size=2, max_size=2), min_size=1, max_size=7)


def states_of(points: list[list[int]]) -> list[StateDict]:
    return [{"w": torch.tensor(point, dtype=torch.float32)} for point in points]


def waves(state: StateDict) -> float:
    """A score with many peaks, and few values, so that there are ties."""
    a, b = state["w"].tolist()
    return round(3 * math.sin(2 * a) + 2 * math.cos(a * b)) / 2


def oracle(states: list[StateDict], score: Callable[[StateDict], float], *, strict: bool) -> tuple[int, ...]:
    """The recipe as the paper writes it, with every mean from scratch."""
    order = sorted(range(len(states)), key=lambda number: -score(states[number]))
    taken, best = [order[0]], score(states[order[0]])
    for number in order[1:]:
        mean = {"w": torch.stack([states[one]["w"].double() for one in [*taken, number]]).mean(0).float()}
        if score(mean) > best if strict else score(mean) >= best:
            taken, best = [*taken, number], score(mean)
    return tuple(taken)


@settings(deadline=None)
@given(points=vectors, tie=st.sampled_from(["accept", "reject"]))
def test_it_takes_what_the_paper_takes_and_never_scores_less_than_the_best(points: Any, tie: Any) -> None:
    states = states_of(points)
    soup = ws.greedy_soup(states, waves, tie=tie)
    assert soup.ingredients == oracle(states, waves, strict=tie == "reject")
    assert soup.score == waves(soup.state) >= max(map(waves, states))
    assert soup.scores == tuple(sorted(soup.scores))
    assert len(soup.scores) == len(soup.ingredients)
    assert soup.scores[0] == max(map(waves, states))


@settings(deadline=None)
@given(points=vectors)
def test_every_evaluation_is_reported_in_order(points: Any) -> None:
    told: list[Progress] = []
    soup = ws.greedy_soup(states_of(points), waves, on_progress=told.append)
    assert [event.index for event in told] == list(range(1, 2 * len(points)))
    assert told == [trial.progress() for trial in soup.trials]
    assert [event.details.get("accepted") for event in told] == [trial.accepted for trial in soup.trials]
    singles, mixtures = soup.trials[: len(points)], soup.trials[len(points) :]
    assert [trial.score for trial in singles] == [waves(state) for state in states_of(points)]
    assert all(trial.accepted is None and trial.size == 1 for trial in singles)
    assert [trial.ingredient for trial in mixtures if trial.accepted] == list(soup.ingredients[1:])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", [TASK, PLAIN], ids=lambda task: task.name)
def test_with_a_task_it_is_no_worse_than_the_best_on_validation(task: Any, seed: int) -> None:
    _, states = fine_tunes(task, 5, steps=6 + 5 * seed)
    singles = [task.score(network_with(task, state), "validation")["accuracy"] for state in states]
    soup = ws.greedy_soup(states, task)
    assert [trial.score for trial in soup.trials[:5]] == singles
    assert task.score(network_with(task, soup.state), "validation")["accuracy"] == soup.score >= max(singles)


def test_a_task_is_maximised_by_its_objective() -> None:
    _, states = fine_tunes(PLAIN, 4)
    by_loss = type(PLAIN)("loss", PLAIN.build, PLAIN.load, objective="loss")
    soup = ws.greedy_soup(states, by_loss)
    assert soup.score == -by_loss.score(network_with(by_loss, soup.state), "validation")["loss"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_and_states_give_the_same_soup(tmp_path: Path, suffix: str) -> None:
    _, states = fine_tunes(TASK, 4)
    paths = saved(states, tmp_path, suffix)
    a, b = ws.greedy_soup(states, TASK), ws.greedy_soup(paths, TASK)
    assert equal(a.state, b.state)
    assert (a.ingredients, a.scores) == (b.ingredients, b.scores)
    assert [trial.name for trial in b.trials[:4]] == [str(path) for path in paths]


def test_copies_are_all_taken_or_all_but_the_first_left() -> None:
    _, (state, *_) = fine_tunes(PLAIN, 1)
    accepted, rejected = (ws.greedy_soup([state] * 4, PLAIN, tie=tie) for tie in ("accept", "reject"))
    assert accepted.ingredients == (0, 1, 2, 3)
    assert rejected.ingredients == (0,)
    assert equal(accepted.state, state)
    assert equal(rejected.state, state)


def test_one_ingredient_is_the_soup_with_its_own_statistics() -> None:
    _, (state, *_) = fine_tunes(TASK, 1)
    assert equal(ws.greedy_soup([state], TASK).state, state)


def test_scores_that_are_not_numbers_come_last_and_never_in() -> None:
    states = states_of([[1, 0], [2, 0], [3, 0]])

    def score(state: StateDict) -> float:
        return math.nan if float(state["w"][0]) != 2 else 1.0

    soup = ws.greedy_soup(states, score)
    assert soup.ingredients == (1,)
    assert equal(soup.state, states[1])
    with pytest.raises(WeightspaceError, match="all 3 ingredients are NaN"):
        ws.greedy_soup(states, lambda state: math.nan)
    with pytest.raises(WeightspaceError, match="returned 'good'; expected a number"):
        ws.greedy_soup(states, lambda state: "good")  # type: ignore[arg-type,return-value]


def test_invalid_soups_are_refused() -> None:
    _, states = fine_tunes(PLAIN, 2)
    with pytest.raises(WeightspaceError, match="Unknown choice for ties 'maybe'"):
        ws.greedy_soup(states, PLAIN, tie="maybe")  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match="Unknown choice of statistics 'repair'"):
        ws.greedy_soup(states, PLAIN, statistics="repair")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="the network of kitchen and 0 do not fit"):
        ws.greedy_soup(states, TASK)
    with pytest.raises(WeightspaceError, match="a list of at least one"):
        ws.greedy_soup([], PLAIN)


def replacement_oracle(states: list[StateDict], score: Callable[[StateDict], float]) -> tuple[int, ...]:
    """Selection with replacement, with every mean from scratch."""
    taken = [max(range(len(states)), key=lambda number: score(states[number]))]
    current = score(states[taken[0]])
    while len(taken) < 4 * len(states):

        def mixed(number: int) -> float:
            return score({"w": torch.stack([states[one]["w"].double() for one in [*taken, number]]).mean(0).float()})

        best = max(range(len(states)), key=mixed)
        if mixed(best) <= current:
            break
        current = mixed(best)
        taken.append(best)
    return tuple(taken)


def hill(state: StateDict) -> float:
    """A score whose peak lies at no plain mean of corners."""
    a, b = state["w"].tolist()
    return -((a - 1.7) ** 2) - (b - 0.4) ** 2


@settings(deadline=None, max_examples=50)
@given(points=vectors, score=st.sampled_from([hill, waves]))
def test_with_replacement_the_best_of_every_round_is_taken(points: Any, score: Any) -> None:
    states = states_of(points)
    soup = ws.greedy_soup(states, score, replacement=True)
    assert soup.ingredients == replacement_oracle(states, score)
    assert soup.scores == tuple(sorted(soup.scores))
    assert soup.score == score(soup.state) >= ws.greedy_soup(states, score).scores[0]
    rounds = len(soup.trials) // len(states) - 1
    assert [trial.index for trial in soup.trials] == list(range(1, len(soup.trials) + 1))
    assert rounds == len(soup.ingredients) or len(soup.ingredients) == 4 * len(states)
    assert [trial.ingredient for trial in soup.trials if trial.accepted] == list(soup.ingredients[1:])


def test_with_replacement_an_ingredient_weighs_more() -> None:
    states = states_of([[0, 0], [3, 0]])
    soup = ws.greedy_soup(states, lambda state: -abs(float(state["w"][0]) - 2.0), replacement=True)
    assert sorted(soup.ingredients) == [0, 1, 1]
    assert soup.state["w"].tolist() == [2.0, 0.0]


def test_with_replacement_a_task_gives_the_same_soup_from_files(tmp_path: Path) -> None:
    _, states = fine_tunes(TASK, 3)
    a = ws.greedy_soup(states, TASK, replacement=True)
    b = ws.greedy_soup(saved(states, tmp_path), TASK, replacement=True)
    assert (a.ingredients, a.scores) == (b.ingredients, b.scores)
    assert equal(a.state, b.state)
    assert a.score >= max(trial.score for trial in a.trials[:3])
    assert TASK.score(network_with(TASK, a.state), "validation")["accuracy"] == a.score
