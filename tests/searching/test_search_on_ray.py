"""Searches on a Ray cluster of two nodes: the results of one process, and no score is lost with a worker."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import weightspace as ws
from weightspace.progress import Progress
from weightspace.searching import CommandScore, SearchOptions
from weightspace.soups.evaluation import Place
from weightspace.tasks import ClassificationTask

from .test_search import TINY, digits_recipe

ON_RAY = Place("ray", workers=2)

#: Prints a number made of the checkpoint and notes it; the workers of some of them die in the middle.
SCORE = """
import os, pathlib, signal, sys, time
value = sum(pathlib.Path(sys.argv[1]).read_bytes()) % 1009
with open("log", "a") as log:
    log.write(f"{value}\\n")
if len(open("log").read().splitlines()) in DEATHS:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(5)
print(value)
"""


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """Start a cluster of two nodes with a CPU each, from a folder that isn't that of the search."""
    import ray
    from ray.cluster_utils import Cluster

    here = os.getcwd()
    os.chdir("/")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address=cluster.address, **quiet)
        os.chdir(here)
        yield
    finally:
        os.chdir(here)
        ray.shutdown()
        cluster.shutdown()


def test_a_search_on_two_nodes_finds_what_one_process_finds(digits: ClassificationTask, trained: Path) -> None:
    import ray

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    options = SearchOptions(engine="cma-es", trials=4, references=False, cache=False, place=Place(workers=1))
    alone = ws.search(digits_recipe(trained), digits, options=replace(options, engine="random"))
    there = ws.search(digits_recipe(trained), digits, options=replace(options, engine="random", place=ON_RAY))
    assert there.trials == alone.trials
    assert there.recipe == alone.recipe


@pytest.mark.parametrize("deaths", [(), (2,), (1, 4)])
def test_a_killed_worker_loses_no_score(deaths: tuple[int, ...], tiny: Path) -> None:
    """Models and script are relative to the folder of the search."""
    Path("score.py").write_text(SCORE.replace("DEATHS", repr(deaths)))
    score = CommandScore(f"{sys.executable} score.py {{model}}")
    options = SearchOptions(engine="random", trials=6, references=False, place=ON_RAY)
    found = ws.search(TINY, score, mode="max", options=options)
    values = Path("log").read_text().splitlines()
    assert len(found.trials) == 6
    assert {str(int(trial.scores["score"])) for trial in found.trials} == set(values)
    assert len(values) == 6 + len(deaths)
    again = ws.search(TINY, score, mode="max", options=options)
    assert again.trials == found.trials
    assert Path("log").read_text().splitlines() == values  # all were kept


def test_an_interrupted_search_on_ray_goes_on(tiny: Path) -> None:
    Path("score.py").write_text(SCORE.replace("DEATHS", "()"))
    score = CommandScore(f"{sys.executable} score.py {{model}}")
    options = SearchOptions(engine="random", trials=6, references=False, place=ON_RAY)

    def stop(event: Progress) -> None:
        if event.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ws.search(TINY, score, mode="max", options=options, on_progress=stop)
    scored = len(Path("log").read_text().splitlines())
    found: Any = ws.search(TINY, score, mode="max", options=options)
    assert len(found.trials) == 6
    assert len(Path("log").read_text().splitlines()) <= max(6, scored) + 1  # at most the one that was being scored
