"""The claims on digits: each gate holds for the median over five pairs (triples, sets) or more.

What every claim says, and where it comes from, is in analyses/README.md.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import ModuleType

import pytest

#: Pairs (triples, sets) of networks.
PAIRS = 5
#: Script -> seeds in a group, where it is no pair.
SIZES = {"straight_through": 3, "three_models": 3, "merge_many": 3}
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
    ("merge_many", "parts: merged / best", "<", 1.0),
]

Medians = Callable[[str], Mapping[str, float]]


def on_one_worker(name: str) -> pytest.MarkDecorator:
    """Keep the claims of a script on one worker, and scripts that share their matchings too."""
    return pytest.mark.xdist_group("straight_through" if name == "three_models" else name)


@pytest.fixture(scope="module")
def medians(script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Medians:
    """Return the medians of a script's figures, measured when first asked for."""
    folder = tmp_path_factory.getbasetemp()
    networks = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "networks"

    @functools.cache
    def find(name: str) -> Mapping[str, float]:
        groups = script("recipe").seed_groups(PAIRS, SIZES.get(name, 2))
        return script("report").medians(row for _, row in script(name).rows(groups, networks))

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


@on_one_worker("straight_through")
def test_the_estimator_on_weights_keeps_the_alignment_of_weight_matching(medians: Medians) -> None:
    found = medians("straight_through")
    assert found["projected / naive"] < 0.05
    assert found["R projected / R weights"] > 0.9


@on_one_worker("merge_many")
def test_that_a_merged_network_beats_the_best_of_those_of_the_same_data_does_not_reproduce(medians: Medians) -> None:
    found = medians("merge_many")
    assert 1 < found["same: merged / best"] < 2
    assert found["same: merged accuracy"] > 0.97
