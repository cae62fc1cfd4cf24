"""Gates of aligned vision transformers, on networks of the seeds of the kept results, trained anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]

SEEDS = (31, 32, 33)

#: Positions along the linear path.
POINTS = 5


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of trained networks, which all workers share."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "networks"


def measured(
    script: Script, networks: Path, methods: Mapping[str, object], seeds: tuple[int, ...]
) -> dict[str, dict[str, list[float]]]:
    """Return method -> figure -> its values for all pairs of the networks, and the accuracies of the parents."""
    alignments = script("alignments")
    task = script("transformer_tasks").task_of("vit-fashion")
    nets = {seed: script("recipe").trained(task, seed, cache=networks) for seed in seeds}
    accuracies = {seed: alignments.scores_of(task, net)["accuracy"] for seed, net in nets.items()}
    found: dict[str, dict[str, list[float]]] = {name: {"barrier": [], "lost": []} for name in methods}
    for a, b in combinations(seeds, 2):
        for name, method in methods.items():
            row, _ = alignments.measure(task, method(task, nets[a], nets[b]), POINTS)  # type: ignore[operator]
            found[name]["barrier"].append(row["barrier"])
            found[name]["lost"].append(min(accuracies[a], accuracies[b]) - row["accuracy"])
    return found


@pytest.mark.xdist_group("transformers in closed form")
def test_the_closed_form_holds_its_gates(script: Script, networks: Path) -> None:
    alignments = script("alignments")
    closed = alignments.remembered(alignments.aligned())
    methods = {
        "permutations": alignments.permuted("activation-matching"),
        "closed form": closed,
        "least squares": alignments.then_least_squares(closed),
    }
    found = {name: row["barrier"] for name, row in measured(script, networks, methods, SEEDS).items()}
    assert max(found["closed form"]) <= 0.30
    assert median(found["closed form"]) <= min(0.22, 0.5 * median(found["permutations"]))
    assert median(found["least squares"]) <= 0.15


@pytest.mark.xdist_group("transformers learned")
def test_250_learned_steps_hold_their_gates(script: Script, networks: Path) -> None:
    methods = {"learned": script("alignments").aligned(method="learned")}
    found = measured(script, networks, methods, SEEDS[::-1])["learned"]  # so that workers train different networks
    assert median(found["barrier"]) <= 0.05
    assert median(found["lost"]) <= 0.02
