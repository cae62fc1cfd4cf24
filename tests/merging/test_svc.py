"""SVC: directions that tasks share count once, and directions of single tasks as the parameter says."""

import pytest
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge


def svc(deltas: list[Tensor], **parameters: object) -> Tensor:
    """Return what is made of a merged difference and those of the tasks, from a base of zeros."""
    base = {"w": torch.zeros(deltas[0].shape, dtype=torch.float64)}
    return merge([{"w": delta} for delta in deltas], "svc", base=base, parameters=parameters)["w"]


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)], ids=str)
def test_a_sum_of_copies_becomes_the_copy(shape: tuple[int, int]) -> None:
    task = normals(1, shape, torch.float64)
    assert error(svc([3 * task, task, task, task], alpha=1.0), task) < 1e-12
    assert error(svc([task, task, task], alpha=1.0), task) < 1e-12


@pytest.mark.parametrize(("alpha", "factor"), [(1.0, 1.0), (0.5, 4 / 3), (None, 4 / 3)])
def test_the_sum_of_tasks_without_common_directions_is_scaled_by_alpha(alpha: float | None, factor: float) -> None:
    basis, other = (torch.linalg.qr(normals(seed, (10, 10), torch.float64)).Q for seed in (1, 2))
    values = torch.tensor([6.0, 4.0, 2.0, 5.0, 3.0, 1.0]).double()
    tasks = [basis[:, part] @ torch.diag(values[part]) @ other[part] for part in (slice(0, 3), slice(3, 6))]
    found = svc([tasks[0] + tasks[1], *tasks], **({} if alpha is None else {"alpha": alpha}))
    assert error(found, factor * (tasks[0] + tasks[1])) < 1e-12


def test_the_size_of_the_differences_is_irrelevant() -> None:
    deltas = [normals(seed, (6, 9), torch.float64) for seed in (1, 2, 3)]
    assert error(svc([1e-9 * delta for delta in deltas]), 1e-9 * svc(deltas)) < 1e-9


def test_other_tensors_stay_as_they_were_merged() -> None:
    states = [{"bias": normals(seed, (5,)), "conv": normals(seed, (2, 3, 3, 3))} for seed in range(4)]
    merged = merge(states[1:], "svc", base=states[0])
    assert all(torch.equal(merged[name], tensor) for name, tensor in states[1].items())
