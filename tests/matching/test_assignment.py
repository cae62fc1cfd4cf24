"""The door to the assignment solver."""

import itertools

import pytest
import torch

from weightspace.matching.assignment import assign


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
