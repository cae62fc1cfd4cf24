"""DC-Merge: tasks in orthogonal directions are added, and their singular values smoothed."""

import pytest
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge

#: Singular values of the tasks, with the sum 12.
VALUES = torch.tensor([6.0, 3.0, 2.0, 1.0], dtype=torch.float64)


def dc_merge(deltas: list[Tensor], **parameters: object) -> Tensor:
    """Return what is made of differences from a base of zeros."""
    base = {"w": torch.zeros(deltas[0].shape, dtype=torch.float64)}
    return merge([{"w": delta} for delta in deltas], "dc_merge", base=base, parameters=parameters)["w"]


def orthogonal_tasks(values: Tensor) -> list[Tensor]:
    """Return three tasks of 12 directions in all, with these singular values each."""
    left, right = (torch.linalg.qr(normals(seed, (size, size), torch.float64)).Q for seed, size in ((1, 12), (2, 20)))
    return [left[:, i : i + 4] @ torch.diag(values) @ right[i : i + 4] for i in (0, 4, 8)]


@pytest.mark.parametrize(
    ("smoothing", "rho", "values"),
    [
        ("none", 5.0, VALUES),
        ("mean", 5.0, torch.full((4,), 3.0).double()),
        ("linear", 2.0, torch.tensor([6.0, 5.0, 4.0, 3.0]).double() * 12 / 18),
        ("linear", 9.0, torch.tensor([18.0, 13.0, 8.0, 3.0]).double() * 12 / 42),
    ],
)
def test_tasks_in_orthogonal_directions_are_added_with_smoothed_singular_values(
    smoothing: str, rho: float, values: Tensor
) -> None:
    found = dc_merge(orthogonal_tasks(VALUES), smoothing=smoothing, rho=rho, density=1.0)
    assert error(found, sum(orthogonal_tasks(values), torch.zeros(12, 20))) < 1e-9


def test_only_the_largest_elements_are_kept() -> None:
    largest = dc_merge(orthogonal_tasks(VALUES))  # the least density keeps one element of each task
    assert error(largest, sum(orthogonal_tasks(VALUES * (VALUES > 5)), torch.zeros(12, 20))) < 1e-9


def test_the_rank_limits_the_directions_of_a_task() -> None:
    found = dc_merge(orthogonal_tasks(VALUES), rank=2, density=1.0)
    assert error(found, sum(orthogonal_tasks(VALUES * (VALUES > 2.5)), torch.zeros(12, 20))) < 1e-9


def test_matrices_that_did_not_change_have_no_directions() -> None:
    first, second, _ = orthogonal_tasks(VALUES)
    nothing = torch.zeros_like(first)
    assert error(dc_merge([first, nothing, second], density=1.0), first + second) < 1e-9
    assert not dc_merge([nothing, nothing]).any()
