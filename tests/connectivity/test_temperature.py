"""Temperatures: a planted one is recovered, and dividing by it never raises the loss that it was fitted to."""

import math
from typing import Any

import pytest
import torch
from tiny import plain, task_of, weights
from torch import nn

from weightspace.connectivity import Tempered, fit_temperature, loss_curve, midpoint_temperature
from weightspace.errors import WeightspaceError


class Words(nn.Module):
    def forward(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": vectors}


def best_temperature(found: Any, network: nn.Module) -> float:
    """Return the minimum over a fine grid: the oracle."""
    grid = torch.linspace(math.log(0.02), math.log(50), 800).exp().tolist()
    return min(grid, key=lambda value: found.score(Tempered(network, value), "validation")["loss"])


def trained_a_little(found: Any) -> nn.Module:
    network = found.network()
    network.load_state_dict(weights(found, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(40):
        for batch in found.batches("train", 0):
            optimizer.zero_grad()
            found.loss(network, batch).backward()
            optimizer.step()
    return network.eval()


@pytest.mark.parametrize("factor", [0.02, 1.0, 30.0])
def test_logits_that_were_scaled_are_scaled_back(factor: float) -> None:
    found = task_of(plain)
    network = trained_a_little(found)
    fitted = fit_temperature(found, network, split="validation")
    scaled = fit_temperature(found, Tempered(network, 1 / factor), split="validation")
    assert fitted.value == pytest.approx(best_temperature(found, network), rel=0.01)
    assert scaled.value == pytest.approx(factor * fitted.value, rel=1e-3)
    assert scaled.tempered_loss == pytest.approx(fitted.tempered_loss, rel=1e-6)
    assert fitted.tempered_loss <= fitted.loss + 1e-9


def test_accuracy_is_that_of_the_network() -> None:
    found = task_of(plain)
    network = trained_a_little(found)
    before, after = found.score(network), found.score(Tempered(network, 7.0))
    assert before["accuracy"] == after["accuracy"]
    assert before["loss"] != after["loss"]


def test_a_network_between_two_is_underconfident(digits_mlp: Any, mlp_states: Any) -> None:
    fitted = midpoint_temperature(digits_mlp, *mlp_states)
    assert fitted.loss == loss_curve(digits_mlp, *mlp_states, 3).loss[1]
    assert fitted.split == "test"
    assert fitted.value < 0.5
    assert fitted.tempered_loss < 0.5 * fitted.loss


def test_a_network_without_a_tensor_of_logits_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="tensor of logits"):
        fit_temperature(task_of(plain), Words())
