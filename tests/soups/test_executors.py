"""Soups are the same wherever their ingredients are scored."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kitchen import equal, fine_tunes, saved

import weightspace as ws
from weightspace.parallel import EXECUTORS
from weightspace.soups import Soup, WiseFT

#: The kitchen as a user's file, which other processes find by its path.
SOURCE = f"{Path(__file__).parent}/kitchen.py:TASK"


@pytest.fixture(scope="module", autouse=True)
def _one_cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()


def test_serial_processes_and_ray_give_equal_soups_and_lines(tmp_path: Path) -> None:
    task = ws.load_task(SOURCE)
    base, states = fine_tunes(task, 4)  # type: ignore[arg-type]
    paths = saved([base, *states], tmp_path)
    soups: dict[str, Soup] = {}
    lines: dict[str, WiseFT] = {}
    for place in EXECUTORS:
        soups[place] = ws.greedy_soup(paths[1:], task, cache=False, executor=place, workers=2)
        lines[place] = ws.wise_ft(paths[0], paths[1], task, (0, 0.3, 0.7, 1), cache=False, executor=place, workers=2)
    for place in ("processes", "ray"):
        assert soups[place].trials == soups["serial"].trials
        assert equal(soups[place].state, soups["serial"].state)
        assert lines[place].scores == lines["serial"].scores
        assert equal(lines[place].state, lines["serial"].state)


def test_state_dicts_and_functions_are_sent_to_workers(tmp_path: Path) -> None:
    task = ws.load_task(SOURCE)
    _, states = fine_tunes(task, 3)  # type: ignore[arg-type]
    soups = [ws.greedy_soup(states, task, cache=False, executor=place, workers=2) for place in EXECUTORS]
    assert soups[0].trials == soups[1].trials == soups[2].trials
    code = tmp_path / "scores.py"
    code.write_text("def small(state):\n    return -float(sum(one.double().abs().sum() for one in state.values()))\n")
    from weightspace.user_code import load_object

    score = load_object(f"{code}:small")
    by_function = [ws.greedy_soup(states, score, executor=place, workers=2) for place in EXECUTORS]
    assert by_function[0].trials == by_function[1].trials == by_function[2].trials
