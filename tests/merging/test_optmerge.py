"""OptMerge: the descent of torch's optimisers, and the minimum that it goes to."""

import pytest
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge


def optmerge(deltas: list[Tensor], **parameters: object) -> Tensor:
    """Return what is made of differences from a base of zeros."""
    base = {"w": torch.zeros(deltas[0].shape, dtype=torch.float64)}
    return merge([{"w": delta} for delta in deltas], "optmerge", base=base, parameters=parameters)["w"]


def normal_deltas(shape: tuple[int, int], models: int = 3) -> list[Tensor]:
    return [1e-2 * normals(seed, shape, torch.float64) for seed in range(models)]


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], torch.diag(values[:rank]), right[:rank]


def loss(merged: Tensor, deltas: list[Tensor], tuning: str) -> Tensor:
    mean, rank = sum(deltas) / len(deltas), min(merged.shape) // len(deltas)
    total = torch.zeros((), dtype=torch.float64)
    for delta in deltas:
        _, values, right = leading(delta, rank)
        centre = mean if tuning == "full" else torch.zeros_like(mean)
        left, spread, across = leading(delta - centre, rank)
        target = left @ spread @ across + centre
        total = total + ((merged - target) @ (values @ right).T).square().sum() / delta.square().sum()
    return total


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)], ids=str)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_descent_is_that_of_torch(tuning: str, shape: tuple[int, int]) -> None:
    deltas = normal_deltas(shape)
    start = sum(deltas, torch.zeros(shape)) / (1 if tuning == "full" else 3)
    merged = start.clone().requires_grad_()
    full = torch.optim.Adam([merged], lr=1e-5)
    optimizer = full if tuning == "full" else torch.optim.SGD([merged], lr=1e-4, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        loss(merged, deltas, tuning).backward()
        optimizer.step()
    assert error(optmerge(deltas, tuning=tuning, steps=20) - start, merged.detach() - start) < 1e-6


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_without_steps_it_is_the_nearest_minimum(tuning: str) -> None:
    deltas = normal_deltas((9, 20))
    start = sum(deltas, torch.zeros(9, 20)) / (1 if tuning == "full" else 3)
    found = optmerge(deltas, tuning=tuning, steps=0).requires_grad_()
    loss(found, deltas, tuning).backward()
    assert found.grad is not None
    assert float(found.grad.norm()) < 1e-10
    _, _, used = leading(torch.cat([leading(delta, 3)[2] for delta in deltas]), 9)
    moved = found.detach() - start
    assert error(moved @ used.T @ used, moved) < 1e-9  # nothing is added outside the tasks' directions


def test_many_steps_of_gradient_descent_end_at_the_minimum() -> None:
    deltas = normal_deltas((9, 20))
    least = optmerge(deltas, tuning="lora", steps=0)
    errors = [error(optmerge(deltas, tuning="lora", steps=steps), least) for steps in (300, 3000, 300000)]
    assert errors[0] > errors[1] > 1e3 * errors[2]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_models_that_did_not_change_are_merged_without_division_by_zero(tuning: str) -> None:
    first = normal_deltas((6, 8))[0]
    assert optmerge([first, torch.zeros_like(first)], tuning=tuning).isfinite().all()
    assert not optmerge([torch.zeros_like(first)] * 2, tuning=tuning).any()
