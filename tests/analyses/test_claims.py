"""The claims on digits: each gate holds for the median over pairs (triples, sets), or its failure is reported.

The networks are those of the kept results, whose seeds had no part in the choice of the recipe. What every claim says,
and where it comes from, is in analyses/README.md.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

#: Pairs (triples, sets) of networks, and of a script whose medians of five swing about a gate.
PAIRS, MORE = 5, {"weight_matching": 25}
#: Script -> seeds in a group, where it is no pair.
SIZES = {"straight_through": 3, "three_models": 3, "merge_many": 3, "soups_against_ensembles": 1}
#: Script -> what is measured here of it, where that is not all.
PARTS: dict[str, dict[str, Any]] = {"merge_many": {"kinds": ("parts",)}}
#: Script, figure, and what its median must be.
CLAIMS = [
    ("weight_matching", "matched / naive", "≤", 0.05),
    ("weight_matching", "L2 reduction", "<", 0.35),
    ("weight_matching", "Taylor error", ">", 0.5),
    ("weight_matching", "R_.3 before", "<", 0.1),
    ("weight_matching", "R_.3", ">", 0.3),
    ("weight_matching", "R_.3 − R_0", ">", 0.0),
    ("weight_matching", "R_.7 − R_.3", ">", 0.0),
    ("weight_matching", "input energy", "≥", 3.0),
    ("activation_matching", "R ratio", ">", 0.7),
    ("straight_through", "R Sinkhorn / R weights", "<", 0.5),
    ("straight_through", "Sinkhorn / naive", "<", 0.1),
    ("three_models", "weights / Sinkhorn", "<", 0.5),
    ("soups_against_ensembles", "correlation", ">", 0.7),
    ("soups_against_ensembles", "sign", ">", 0.8),
    ("merge_many", "parts: merged / best", "<", 1.0),
]
#: Gates that the kept results miss, as analyses/README.md says.
MISSED = [("merge_many", "same: merged / best", "<", 1.0)]

Medians = Callable[[str], Mapping[str, float]]


def kept(name: str) -> Any:
    """Return the results of a script that the repository keeps."""
    return json.loads((Path(__file__).parents[2] / "analyses" / "results" / f"{name}.json").read_text())


def on_one_worker(name: str) -> pytest.MarkDecorator:
    """Keep the claims of a script on one worker, and scripts that share their matchings too."""
    return pytest.mark.xdist_group("straight_through" if name == "three_models" else name)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of trained networks, which all workers share."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "networks"


@pytest.fixture(scope="module")
def medians(script: Callable[[str], ModuleType], networks: Path) -> Medians:
    """Return the medians of a script's figures, measured when first asked for."""

    @functools.cache
    def find(name: str) -> Mapping[str, float]:
        groups = script("recipe").seed_groups(MORE.get(name, PAIRS), SIZES.get(name, 2))
        return script("report").medians(row for _, row in script(name).rows(groups, networks, **PARTS.get(name, {})))

    return find


@pytest.mark.parametrize(
    ("name", "figure", "relation", "bound"),
    [pytest.param(*claim, marks=on_one_worker(claim[0]), id=" ".join(map(str, claim))) for claim in CLAIMS],
)
def test_a_claim_holds_for_the_median(
    script: Callable[[str], ModuleType], medians: Medians, name: str, figure: str, relation: str, bound: float
) -> None:
    value = medians(name)[figure]
    gate = next(gate for gate in script(name).GATES if gate.figure == figure)
    assert (gate.relation, gate.bound) == (relation, bound)  # what the script says is what is tested
    assert gate.holds(value), gate.verdict(value)


def test_weight_decay_aligns_the_singular_vectors(script: Callable[[str], ModuleType], networks: Path) -> None:
    sweeps, pairs = script("sweeps"), script("recipe").seed_groups(PAIRS)
    found = {
        decay: dict(script("pairs").pair_rows(sweeps.of_weight_decay(decay), pairs, points=3, cache=networks))
        for decay in sweeps.EXPECTED
    }
    assert [verdict["holds"] for verdict in sweeps.verdicts(found)] == [True, True]


@pytest.mark.parametrize(("name", "figure", "relation", "bound"), MISSED)
def test_a_gate_that_is_missed_is_reported_as_missed(name: str, figure: str, relation: str, bound: float) -> None:
    gate = next(gate for gate in kept(name)["gates"] if gate["figure"] == figure)
    assert (gate["relation"], gate["bound"], gate["holds"]) == (relation, bound, False)


@pytest.mark.parametrize("name", sorted({name for name, *_ in CLAIMS + MISSED}))
def test_the_kept_results_are_of_these_networks_and_of_all_gates(
    script: Callable[[str], ModuleType], name: str
) -> None:
    results, first = kept(name), script("recipe").FIRST_SEED
    assert len(results["rows"]) == MORE.get(name, PAIRS)
    assert str(first) in next(iter(results["rows"]))
    assert {gate["figure"]: gate["holds"] for gate in results["gates"]} == {
        figure: holds
        for listed, holds in ((CLAIMS, True), (MISSED, False))
        for one, figure, *_ in listed
        if one == name
    }


@on_one_worker("straight_through")
def test_the_estimator_on_weights_keeps_the_alignment_of_weight_matching(medians: Medians) -> None:
    found = medians("straight_through")
    assert found["projected / naive"] < 0.05
    assert found["R projected / R weights"] > 0.9


@on_one_worker("soups_against_ensembles")
def test_beyond_the_basin_the_prediction_says_little(medians: Medians) -> None:
    assert medians("soups_against_ensembles")["correlation, beyond"] < 0.7


def test_networks_of_the_same_data_are_merged_without_losing_much_accuracy() -> None:
    found = kept("merge_many")["median"]
    assert found["same: merged accuracy"] > found["same: best accuracy"] - 0.03
