"""REPAIR: the units of a network between two have the interpolated mean and deviation, measured by an oracle."""

import math
from typing import Any

import pytest
import torch
from tiny import NETWORKS, outputs, plain, task, task_of, weights
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.connectivity import barrier, loss_curve, repair, reset_statistics
from weightspace.connectivity.activation_statistics import moments, pooled, unit_layers
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import interpolate

every_network = pytest.mark.parametrize("name", NETWORKS)
#: More than any of the networks has layers one above the other.
ENOUGH = 4


def pair(name: str) -> tuple[Any, StateDict, StateDict]:
    found = task(name)
    return found, weights(found, 1), weights(found, 2)


def largest_error(found: Any, a: StateDict, b: StateDict, repaired: StateDict, position: float, layers: Any) -> float:
    """Return how far a mean or a deviation is off, in deviations; the mean only where there is a bias to set it."""
    ends, between = [outputs(found, state, layers) for state in (a, b)], outputs(found, repaired, layers)
    errors = []
    for layer in layers:
        first, second, now = ends[0][layer], ends[1][layer], between[layer]
        std = (1 - position) * first.std(0, correction=0) + position * second.std(0, correction=0)
        errors.append((now.std(0, correction=0) - std).abs() / std)
        if f"{layer}.bias" in a:
            errors.append((now.mean(0) - (1 - position) * first.mean(0) - position * second.mean(0)).abs() / std)
    return float(torch.cat(errors).max())


@every_network
@pytest.mark.parametrize("position", [0.3, 0.5])
def test_units_have_the_interpolated_mean_and_deviation_of_the_endpoints(name: str, position: float) -> None:
    found, a, b = pair(name)
    layers = NETWORKS[name][2]
    assert largest_error(found, a, b, repair(found, a, b, position, passes=ENOUGH), position, layers) < 1e-9
    assert largest_error(found, a, b, repair(found, a, b, position), position, layers) < 0.1
    assert largest_error(found, a, b, interpolate(a, b, position), position, layers) > 0.1


@every_network
def test_the_layers_are_those_whose_units_are_hidden_and_can_be_set(name: str) -> None:
    found = task(name)
    network = found.network().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # frozen weights are found all the same
    batch = next(found.batches("train", 0))
    assert tuple(unit_layers(network, lambda: found.loss(network, batch))) == NETWORKS[name][2]


@every_network
@pytest.mark.parametrize("method", ["repair", "reset"])
def test_the_endpoints_are_the_models_and_points_between_fit_the_network(name: str, method: Any) -> None:
    found, a, b = pair(name)
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in (a, b)]
    generator = torch.get_rng_state()
    for position, state in ((0, a), (1, b)):
        end = repair(found, a, b, position, method=method)
        assert all(torch.equal(end[key], tensor) for key, tensor in state.items())
    between = repair(found, a, b, 0.5, method=method)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in between.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in a.items()
    }
    assert not any(tensor.requires_grad for tensor in between.values())
    assert torch.equal(torch.get_rng_state(), generator)
    for state, old in zip((a, b), before, strict=True):
        assert all(torch.equal(tensor, old[key]) for key, tensor in state.items())


def test_output_layers_stay_interpolated() -> None:
    found, a, b = pair("two heads")
    repaired, plain_one = repair(found, a, b, 0.4), interpolate(a, b, 0.4)
    for key in ("left.weight", "left.bias", "right.weight", "right.bias"):
        assert torch.equal(repaired[key], plain_one[key])
    assert not torch.equal(repaired["hidden.weight"], plain_one["hidden.weight"])


def test_a_reset_is_the_interpolation_with_recomputed_statistics() -> None:
    found, a, b = pair("residual batch norm")
    expected = reset_statistics(found, interpolate(a, b, 0.5))
    reset = repair(found, a, b, 0.5, method="reset")
    assert all(torch.equal(reset[key], tensor) for key, tensor in expected.items())
    untouched, c, d = pair("plain")
    assert all(
        torch.equal(tensor, interpolate(c, d, 0.5)[key])
        for key, tensor in repair(untouched, c, d, 0.5, method="reset").items()
    )


@pytest.mark.parametrize("name", ["plain", "batch norm"])
def test_units_that_are_dead_in_one_network_or_in_all_are_safe(name: str) -> None:
    """Unit 0 is constant in both endpoints, unit 1 in one of them, unit 2 only in the network between them."""
    found, a, b = pair(name)
    layer = NETWORKS[name][2][0]
    for state in (a, b):
        state[f"{layer}.weight"][0] = 0
    a[f"{layer}.weight"][1] = 0
    b[f"{layer}.weight"][2] = -a[f"{layer}.weight"][2]
    if name == "plain":  # BatchNorm's gain alone makes the unit vanish
        b[f"{layer}.bias"][2] = a[f"{layer}.bias"][2]
    repaired = repair(found, a, b, 0.5, passes=ENOUGH)
    assert all(torch.isfinite(tensor).all() for tensor in repaired.values())
    ends, between = [outputs(found, state, (layer,))[layer] for state in (a, b)], outputs(found, repaired, (layer,))
    now = between[layer]
    torch.testing.assert_close(now.mean(0), (ends[0].mean(0) + ends[1].mean(0)) / 2)
    wanted = (ends[0].std(0, correction=0) + ends[1].std(0, correction=0)) / 2
    wanted[2] = 0  # nothing varies that could be scaled up
    torch.testing.assert_close(now.std(0, correction=0), wanted, rtol=1e-7, atol=1e-9)


def test_copies_are_repaired_to_the_copy() -> None:
    found, a, _ = pair("plain")
    repaired = repair(found, a, a, 0.5, passes=ENOUGH)
    assert all(torch.allclose(repaired[key], tensor, rtol=1e-9, atol=1e-12) for key, tensor in a.items())


def test_two_uncorrelated_units_between_lose_half_their_variance_and_get_it_back() -> None:
    """The collapse of the variance in its simplest form: one unit, which sees another input in either network."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 4))

    found = task_of(build)
    a, b = weights(found, 1), weights(found, 2)
    for column, state in enumerate((a, b)):
        state["0.weight"].zero_()[0, column] = 1
    inputs = torch.cat([batch for batch, _ in found.batches("train", 0)])
    correlation = float(torch.corrcoef(inputs[:, :2].T)[0, 1])
    alone = inputs[:, :2].std(0, correction=0)
    shrunk = outputs(found, interpolate(a, b, 0.5), ("0",))["0"].std(correction=0)
    square = (alone.square().sum() + 2 * correlation * alone.prod()) / 4
    assert shrunk.square() == pytest.approx(float(square))
    assert outputs(found, repair(found, a, b, 0.5), ("0",))["0"].std(correction=0) == pytest.approx(float(alone.mean()))


@pytest.mark.parametrize("sizes", [(1, 1), (3, 40, 1, 17)])
def test_streamed_moments_are_those_of_all_values(sizes: tuple[int, ...]) -> None:
    values = 1e4 + torch.randn(sum(sizes), 5, 2, dtype=torch.float64)
    first, *others = (moments(part, 1) for part in values.split(sizes))
    for other in others:
        first = pooled(first, other)
    rows = values.movedim(1, -1).reshape(-1, 5)
    assert first.count == len(rows)
    torch.testing.assert_close(first.mean, rows.mean(0))
    torch.testing.assert_close(first.std, rows.std(0, correction=0))


def test_repair_lowers_the_barrier_of_networks_without_batchnorm(digits_mlp: Any, mlp_states: Any) -> None:
    none, repaired = (loss_curve(digits_mlp, *mlp_states, 5, statistics=kind) for kind in ("none", "repair"))
    assert (none.statistics, repaired.statistics) == ("none", "repair")
    assert barrier(repaired) < 0.3 * barrier(none)
    assert (repaired.loss[0], repaired.loss[-1]) == (none.loss[0], none.loss[-1])


def test_with_batchnorm_a_reset_is_nearly_repair(digits_cnn: Any, cnn_states: Any) -> None:
    none, reset, repaired = (
        loss_curve(digits_cnn, *cnn_states, 3, statistics=kind).loss[1] for kind in ("none", "reset", "repair")
    )
    assert repaired < 0.7 * none
    assert repaired == pytest.approx(reset, rel=0.1)


def test_the_curve_scores_what_repair_returns(digits_mlp: Any, mlp_states: Any) -> None:
    network = digits_mlp.network()
    network.load_state_dict(repair(digits_mlp, *mlp_states, 0.5))
    curve = loss_curve(digits_mlp, *mlp_states, 3, statistics="repair")
    assert digits_mlp.score(network)["loss"] == curve.loss[1]


@pytest.mark.parametrize("position", [-0.1, 1.1, math.nan, math.inf])
def test_positions_that_are_not_between_are_refused(position: float) -> None:
    with pytest.raises(WeightspaceError, match="from 0 to 1; found"):
        repair(*pair("plain"), position)


def test_networks_that_cannot_be_repaired_are_refused() -> None:
    found, a, b = pair("plain")
    with pytest.raises(WeightspaceError, match=r"method of repair 'rest'.*repair, reset.*Did you mean 'reset'"):
        repair(found, a, b, 0.5, method="rest")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WeightspaceError, match="passes=0"):
        repair(found, a, b, 0.5, passes=0)
    with pytest.raises(CheckpointError, match="tiny and b"):
        repair(found, a, weights(task("batch norm"), 0), 0.5)
    without_data = task_of(plain)
    object.__setattr__(without_data, "batches", lambda split, seed: iter(()))
    with pytest.raises(WeightspaceError, match="no training batches"):
        repair(without_data, a, b, 0.5)
    constant = task_of(plain)
    object.__setattr__(constant, "loss", lambda module, batch: torch.zeros(()))
    with pytest.raises(WeightspaceError, match="no gradient"):
        repair(constant, a, b, 0.5)
