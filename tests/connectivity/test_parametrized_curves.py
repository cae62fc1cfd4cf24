"""Curves, barriers and planes between networks with weight norm, spectral norm and BatchNorm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parametrized_networks import SPECTRAL_NORMS, bits, fine_tunes
from tiny import CLASSES, task_of, weights
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.connectivity import barrier_matrix, loss_curve, loss_plane, taylor_barrier
from weightspace.connectivity.interpolated_network import combined, interpolated
from weightspace.errors import WeightspaceError
from weightspace.merging import interpolate
from weightspace.tasks import ClassificationTask

old_weight_norm, new_weight_norm = nn.utils.weight_norm, nn.utils.parametrizations.weight_norm
old_spectral_norm, new_spectral_norm = nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def under(first: Callable[[nn.Module], nn.Module], second: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = plain()
        first(network[0])  # type: ignore[index]
        second(network[2])  # type: ignore[index]
        return network

    return build


WEIGHT_NORM = task_of(under(new_weight_norm, lambda layer: old_weight_norm(layer, dim=None)))
SPECTRAL_NORM = task_of(under(new_spectral_norm, old_spectral_norm))
PLAIN = task_of(plain)


def trained(task: ClassificationTask, seed: int) -> StateDict:
    """Return weights of a network that has run for a while, so that its singular vectors are in order."""
    module = task.network()
    module.load_state_dict(weights(task, seed))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("original1", "_v")):
                parameter *= 2 + seed
        for _ in range(300):
            module.train()(torch.ones(1, 6, dtype=torch.float64))
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def unwrapped(task: ClassificationTask, state: StateDict) -> StateDict:
    """Return the state of the plain network that computes the same."""
    module = task.network().eval()
    module.load_state_dict(state)
    with torch.no_grad():
        module(torch.ones(1, 6, dtype=torch.float64))
    layers = {name: module.get_submodule(name) for name in ("0", "2", "4")}
    return {
        f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers.items() for part in ("weight", "bias")
    }


def test_the_curve_under_weight_norm_is_that_of_the_plain_networks() -> None:
    a, b = (trained(WEIGHT_NORM, seed) for seed in range(2))
    result = loss_curve(WEIGHT_NORM, a, b, 5)
    expected = loss_curve(PLAIN, unwrapped(WEIGHT_NORM, a), unwrapped(WEIGHT_NORM, b), 5)
    assert result.loss == pytest.approx(expected.loss, rel=1e-9)
    there_and_back = loss_curve(WEIGHT_NORM, b, a, 5).loss
    assert there_and_back[::-1] == pytest.approx(result.loss, rel=1e-9)


def norms(network: nn.Module) -> list[float]:
    with torch.no_grad():
        network(torch.ones(1, 6, dtype=torch.float64))
        return [float(torch.linalg.matrix_norm(network.get_submodule(name).weight, 2)) for name in ("0", "2")]  # type: ignore


@pytest.mark.parametrize("position", [-0.5, 0.0, 0.25, 0.5, 1.0, 1.5])
def test_networks_on_the_line_have_spectral_norm_one(position: float) -> None:
    a, b = (trained(SPECTRAL_NORM, seed) for seed in range(2))
    network = interpolated(SPECTRAL_NORM.network().eval(), a, b, position)
    assert norms(network) == pytest.approx([1, 1], abs=1e-9)
    expected = interpolate(a, b, position)
    assert all(bits(tensor) == bits(expected[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("coefficients", [(1.0, 0.0, 0.0), (0.5, 0.3, 0.2), (1.4, -0.3, -0.1)])
def test_networks_on_the_plane_have_spectral_norm_one(coefficients: tuple[float, ...]) -> None:
    states = [trained(SPECTRAL_NORM, seed) for seed in range(3)]
    network = combined(SPECTRAL_NORM.network().eval(), states, coefficients)
    assert norms(network) == pytest.approx([1, 1], abs=1e-9)
    if coefficients[0] == 1:
        assert all(bits(tensor) == bits(states[0][name]) for name, tensor in network.state_dict().items())


def test_the_plane_under_weight_norm_is_that_of_the_plain_networks() -> None:
    states = [trained(WEIGHT_NORM, seed) for seed in range(3)]
    result = loss_plane(WEIGHT_NORM, *states, resolution=3)
    expected = loss_plane(PLAIN, *(unwrapped(WEIGHT_NORM, state) for state in states), resolution=3)
    for row, other in zip((result.model_loss, *result.loss), (expected.model_loss, *expected.loss), strict=True):
        assert row == pytest.approx(other, rel=1e-9)
    assert result.x == pytest.approx(expected.x, rel=1e-9)
    assert result.y == pytest.approx(expected.y, rel=1e-9)


def test_barriers_by_any_number_of_workers_are_the_same() -> None:
    states = [trained(SPECTRAL_NORM, seed) for seed in range(3)]
    result = barrier_matrix(SPECTRAL_NORM, states, points=3, executor="serial")
    matrix = [[curve_barrier(a, b) for b in states] for a in states]
    for row, other in zip(result.barrier, matrix, strict=True):
        assert row == pytest.approx(other, abs=1e-9)


def curve_barrier(a: StateDict, b: StateDict) -> float:
    """Return the barrier of three points, by hand."""
    losses = []
    for position in (0, 0.5, 1):
        network = SPECTRAL_NORM.network().eval()
        network.load_state_dict(interpolate(a, b, position))
        losses.append(SPECTRAL_NORM.score(network)["loss"])
    return max(0.0, losses[1] - (losses[0] + losses[2]) / 2)


def test_the_estimate_of_a_barrier_under_weight_norm_is_that_of_the_plain_networks() -> None:
    a, b = (trained(WEIGHT_NORM, seed) for seed in range(2))
    expected = taylor_barrier(PLAIN, unwrapped(WEIGHT_NORM, a), unwrapped(WEIGHT_NORM, b))
    assert taylor_barrier(WEIGHT_NORM, a, b) == pytest.approx(expected, rel=1e-9)
    assert expected > 0


def test_no_barrier_is_estimated_under_spectral_norm() -> None:
    a, b = (trained(SPECTRAL_NORM, seed) for seed in range(2))
    with pytest.raises(WeightspaceError, match=r"'0\..*' is under spectral norm"):
        taylor_barrier(SPECTRAL_NORM, a, b)


def batchnorm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES))


@pytest.mark.parametrize("statistics", ["auto", "none"])
def test_no_variance_on_a_plane_is_negative(statistics: Any) -> None:
    task = task_of(batchnorm)
    states = [weights(task, seed) for seed in range(3)]
    for seed, state in enumerate(states):
        state["1.running_var"].fill_(0.01 + 5 * (seed == 0))
    result = loss_plane(task, *states, resolution=3, margin=2.0, statistics=statistics)
    assert all(loss == loss for row in result.loss for loss in row)


def test_steps_on_the_line_are_the_larger_ones_between_its_ends() -> None:
    a, b = ({"norm.num_batches_tracked": torch.tensor(count), "step": torch.tensor(float(count))} for count in (7, 4))
    for position, expected in ((0, 7), (0.5, 7), (1, 4), (1.5, 7)):
        assert [float(tensor) for tensor in interpolate(a, b, position).values()] == [expected, expected]


def test_a_network_between_copies_is_the_copy() -> None:
    (state,) = fine_tunes(SPECTRAL_NORMS["convolution"], 1)
    result = interpolate(state, dict(state), 0.37)
    assert all(bits(result[name]) == bits(tensor) for name, tensor in state.items())
