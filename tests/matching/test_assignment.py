"""The door to the assignment solver."""

import itertools

import pytest
import torch

from weightspace.matching.coordinate_ascent import assign


@pytest.mark.parametrize("size", [1, 2, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_an_assignment_has_the_largest_gain_of_all(size: int, seed: int) -> None:
    gains = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    best = max(
        sum(float(gains[row, column]) for row, column in enumerate(order))
        for order in itertools.permutations(range(size))
    )
    found = assign(gains)
    assert sorted(found.tolist()) == list(range(size))
    assert float(gains.gather(1, found[:, None]).sum()) == pytest.approx(best, rel=1e-6)


def test_equal_gains_give_some_permutation() -> None:
    assert sorted(assign(torch.zeros(4, 4)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gains_of_any_precision_are_assigned_and_left_as_they_are(dtype: torch.dtype) -> None:
    gains = torch.tensor([[1.0, 3.0, 0.0], [2.0, 3.5, 0.0], [0.0, 9.0, 1.0]], dtype=dtype, requires_grad=True)
    assert assign(gains).tolist() == [2, 0, 1]
    assert assign(gains).dtype == torch.int64
    assert gains.detach()[2].tolist() == [0.0, 9.0, 1.0]
