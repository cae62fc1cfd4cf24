"""A module under two names is one: soups, angles and surroundings are those of the network that names it once."""

from typing import Any

import pytest
import torch
from kitchen import CLASSES, equal, examples
from torch import nn

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.soups import angle, compare_recipes, flatness
from weightspace.tasks import ClassificationTask, network_with


class Once(nn.Module):
    """A network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.body(x)).relu())


class Twice(Once):
    """The same, its parts known by other names too: some before and some after."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.other = self.body, self.norm


ONCE, TWICE = (ClassificationTask("shared", build, examples) for build in (Once, Twice))


def once(state: StateDict) -> StateDict:
    return {name: tensor for name, tensor in state.items() if not name.startswith(("second", "other"))}


@pytest.fixture
def states(request: pytest.FixtureRequest) -> list[StateDict]:
    """Return fine-tunes with aliases that share memory, or hold copies as a file without ties does."""
    found = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Twice()
        network.body.weight.data += 0.3 * seed
        network.norm.running_mean += 0.1 * seed  # type: ignore[operator]
        state = network.state_dict()
        found.append({name: tensor.detach().clone() if request.param else tensor for name, tensor in state.items()})
    return found


both = pytest.mark.parametrize("states", [False, True], ids=["tied", "copied"], indirect=True)


@both
def test_learned_coefficients_are_those_of_the_network_that_names_it_once(states: list[StateDict]) -> None:
    for per in ("tensor", "layer", "model"):
        found = ws.learned_soup(states, TWICE, per, epochs=2)
        expected = ws.learned_soup([once(state) for state in states], ONCE, per, epochs=2)
        assert found.losses == expected.losses
        assert found.coefficients == expected.coefficients
        assert equal(once(found.state), expected.state)
        assert equal({n: found.state[f"second.{n}"] for n in ("weight", "bias")}, layer(found.state, "body"))


def layer(state: StateDict, name: str) -> StateDict:
    return {part: state[f"{name}.{part}"] for part in ("weight", "bias")}


@both
def test_statistics_are_measured_under_every_name(states: list[StateDict]) -> None:
    found = ws.uniform_soup(states, TWICE)
    expected = ws.uniform_soup([once(state) for state in states], ONCE)
    assert equal(once(found), expected)
    scores = TWICE.score(network_with(TWICE, found)), ONCE.score(network_with(ONCE, expected))
    assert scores[0] == scores[1]
    greedy = (
        ws.greedy_soup(states, TWICE, cache=False),
        ws.greedy_soup([once(one) for one in states], ONCE, cache=False),
    )
    assert greedy[0].ingredients == greedy[1].ingredients
    assert equal(once(greedy[0].state), greedy[1].state)


@both
def test_surroundings_move_every_name(states: list[StateDict]) -> None:
    found = flatness(states[0], states[1:], TWICE, directions=2, radii=(0, 0.5), points=2)
    assert found == flatness(
        once(states[0]), [once(state) for state in states[1:]], ONCE, directions=2, radii=(0, 0.5), points=2
    )


@both
def test_curves_and_tables_are_the_same(states: list[StateDict]) -> None:
    ours, theirs = states[:2], [once(state) for state in states[:2]]
    for statistics in ("none", "reset", "repair"):
        found = ws.loss_curve(TWICE, *ours, 3, statistics=statistics)  # type: ignore[arg-type]
        assert found.loss == ws.loss_curve(ONCE, *theirs, 3, statistics=statistics).loss  # type: ignore[arg-type]
    assert ws.taylor_barrier(TWICE, *ours) == pytest.approx(ws.taylor_barrier(ONCE, *theirs))
    reports = compare_recipes(ours, TWICE, cache=False), compare_recipes(theirs, ONCE, cache=False)
    assert reports[0].rows == reports[1].rows


def test_an_angle_counts_shared_tensors_once() -> None:
    networks = [Twice() for _ in range(3)]
    plain = [once(network.state_dict()) for network in networks]
    assert angle(*(network.state_dict() for network in networks)) == pytest.approx(angle(*plain))
