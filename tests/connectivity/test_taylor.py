"""The Taylor estimate: exact where the loss is quadratic, its derivatives those of finite differences elsewhere."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import NETWORKS, Quadratic, smooth, task, task_of, vector, weights

from weightspace.checkpoints import StateDict
from weightspace.connectivity import barrier, loss_curve, taylor_barrier
from weightspace.connectivity.taylor import _derivatives, _highest
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.matching import Losses

HILL = Quadratic(torch.diag(torch.tensor([-2.0, 3.0, -0.5]).double()), torch.tensor([1.0, -2.0, 0.3]).double())
moderate = st.floats(-10, 10)


class Regression:
    """Linear regression, written by hand: a bowl, with a barrier nowhere."""

    name, objective = "regression", "loss"
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    example_args = (inputs[:1],)

    def network(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 1, bias=False).double()

    def loss(self, module: Any, batch: Any) -> torch.Tensor:
        return (module(batch[0])[:, 0] - batch[1]).square().mean()

    def score(self, module: Any, split: str = "test") -> dict[str, float]:
        return {"loss": self.loss(module, (self.inputs, self.targets)).item()}

    def batches(self, split: str, seed: int) -> Any:
        return list(zip(self.inputs.split(5), self.targets.split(5), strict=True))


@pytest.mark.parametrize("b", [(2.0, 0.5, -1.0), (-3.0, 0.0, 2.0)])
def test_of_a_quadratic_loss_it_is_the_barrier(b: tuple[float, ...]) -> None:
    a = vector(-1.0, 0.4, 1.0)
    true = barrier(loss_curve(HILL, a, vector(*b), 5))  # a parabola is highest above its chord in the middle
    assert true > 0
    assert taylor_barrier(HILL, a, vector(*b)) == pytest.approx(true, rel=1e-12)


def test_of_linear_regression_it_is_zero_as_the_barrier_is() -> None:
    a, b = vector(1.0, -2.0, 0.5), vector(-3.0, 0.2, 4.0)
    curve = loss_curve(Regression(), a, b, 5)
    assert curve.loss[2] < (curve.loss[0] + curve.loss[-1]) / 2
    assert taylor_barrier(Regression(), a, b) == 0 == barrier(curve)


@given(moderate, moderate, moderate)
def test_its_maximum_is_that_of_a_fine_grid(slope: float, first: float, second: float) -> None:
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    rise = grid * (1 - grid) * (slope + (grid * first + (1 - grid) * second) / 2)
    assert _highest(slope, first, second) == pytest.approx(float(rise.max()), abs=1e-4)
    assert _highest(slope, first, second) >= float(rise.max()) - 1e-12


def test_its_derivatives_are_those_of_finite_differences() -> None:
    found = task_of(smooth)
    a, b = weights(found, 1), weights(found, 2)
    first, second = _derivatives(Losses(found), a, direction(a, b), "validation")
    low, middle, high = (moved_loss(found, a, b, step) for step in (-1e-4, 0.0, 1e-4))
    assert first == pytest.approx((high - low) / 2e-4, rel=1e-6)
    assert second == pytest.approx((high - 2 * middle + low) / 1e-8, rel=1e-4)


def test_its_slope_on_digits_is_that_of_finite_differences(digits_mlp: Any, mlp_states: Any) -> None:
    a, b = mlp_states
    first, _ = _derivatives(Losses(digits_mlp), a, direction(a, b), "validation")
    slope = (moved_loss(digits_mlp, a, b, 1e-2) - moved_loss(digits_mlp, a, b, -1e-2)) / 2e-2
    assert first == pytest.approx(slope, rel=0.05)


def direction(a: StateDict, b: StateDict) -> StateDict:
    return {name: b[name] - a[name] for name in a}


def moved_loss(found: Any, a: StateDict, b: StateDict, step: float) -> float:
    return Losses(found).mean({name: a[name] + step * (b[name] - a[name]) for name in a}, "validation")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_estimate_is_symmetric_and_zero_from_a_network_to_itself(name: str) -> None:
    found = task(name)
    a, b = weights(found, 1), weights(found, 2)
    there, back = taylor_barrier(found, a, b), taylor_barrier(found, b, a)
    assert there == pytest.approx(back, rel=1e-9)
    assert math.isfinite(there)
    assert taylor_barrier(found, a, a) == 0


def test_it_is_far_off_for_networks_from_two_seeds(digits_mlp: Any, mlp_states: Any) -> None:
    true = barrier(loss_curve(digits_mlp, *mlp_states, 9, split="test"))
    assert abs(taylor_barrier(digits_mlp, *mlp_states, split="test") - true) > 0.5 * true


def test_networks_without_an_estimate_are_refused_or_nan() -> None:
    with pytest.raises(CheckpointError, match="quadratic and b"):
        taylor_barrier(HILL, vector(1, 2, 3), vector(1, 2))
    assert math.isnan(taylor_barrier(HILL, vector(1, 2, 3), vector(1, 2, math.nan)))
    empty = Quadratic(HILL.matrix, HILL.linear)
    empty.batches = lambda split, seed: iter(())  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(WeightspaceError, match="'validation' of task 'quadratic' has no batches"):
        taylor_barrier(empty, vector(1, 2, 3), vector(3, 2, 1), split="validation")
