"""WUDI: the minimum of its loss, for wide and tall matrices, against the paper's descent."""

import pytest
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge


def wudi(deltas: list[Tensor], **parameters: object) -> Tensor:
    """Return what is made of differences from a base of zeros."""
    base = {"w": torch.zeros(deltas[0].shape, dtype=torch.float64)}
    return merge([{"w": delta} for delta in deltas], "wudi", base=base, parameters=parameters)["w"]


def loss(merged: Tensor, deltas: list[Tensor]) -> float:
    return sum(float(((merged - delta) @ delta.T).square().sum() / delta.square().sum()) for delta in deltas)


def normal_deltas(shape: tuple[int, int], models: int = 3) -> list[Tensor]:
    return [normals(seed, shape, torch.float64) for seed in range(models)]


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (8, 24), (1, 5)], ids=str)
def test_the_result_has_the_least_loss_and_then_the_least_norm(shape: tuple[int, int]) -> None:
    deltas = normal_deltas(shape)
    found = wudi(deltas)
    inputs = torch.cat([delta.T / delta.norm() for delta in deltas], dim=1)
    outputs = torch.cat([delta @ delta.T / delta.norm() for delta in deltas], dim=1)
    assert error(found, outputs @ torch.linalg.pinv(inputs)) < 1e-9
    for seed in range(5):
        assert loss(found, deltas) <= loss(found + 1e-3 * normals(seed + 9, shape, torch.float64), deltas)


def test_descent_goes_from_the_sum_towards_the_minimum() -> None:
    deltas = [1e-3 * delta for delta in normal_deltas((20, 30))]  # changes as small as those of a fine-tune
    losses = [loss(found, deltas) for found in (sum(deltas), wudi(deltas, steps=300), wudi(deltas))]
    assert losses[0] > 1.5 * losses[1] > 1.5 * losses[2]


def test_tasks_of_other_inputs_are_added_and_equal_ones_kept() -> None:
    first, second = normal_deltas((6, 20), 2)
    basis = torch.linalg.qr(normals(7, (20, 20), torch.float64)).Q
    apart = [first[:, :8] @ basis[:8], second[:, 8:] @ basis[8:]]
    assert error(wudi(apart), sum(apart)) < 1e-9
    assert error(wudi([first, first, first]), first) < 1e-9


def test_models_that_did_not_change_have_no_say() -> None:
    first, second = normal_deltas((6, 20), 2)
    assert error(wudi([first, torch.zeros_like(first), second]), wudi([first, second])) < 1e-12
    assert not wudi([torch.zeros_like(first)] * 2).any()
    assert not wudi([torch.zeros_like(first)] * 2, steps=3).any()


@pytest.mark.parametrize("shape", [(2, 40), (40, 2)], ids=str)
def test_descent_is_that_of_adam(shape: tuple[int, int]) -> None:
    deltas = [1e-3 * delta for delta in normal_deltas(shape)]
    merged = sum(deltas).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=1e-5)
    for _ in range(20):
        optimizer.zero_grad()
        torch.stack([((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas]).sum().backward()
        optimizer.step()
    assert error(wudi(deltas, steps=20), merged.detach()) < 1e-7
