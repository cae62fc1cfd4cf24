"""Sinkhorn's operator: doubly stochastic, differentiable, and an assignment where it is cold."""

import pytest
import torch
from torch import Tensor

from weightspace.matching.assignment import assign
from weightspace.matching.soft_permutations import sinkhorn


def scores(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 7), (3, 4, 4)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_rows_and_columns_sum_to_one(shape: tuple[int, ...], scale: float) -> None:
    result = sinkhorn(scores(*shape, scale=scale), iterations=10_000, tolerance=1e-9)
    assert bool((result >= 0).all())
    torch.testing.assert_close(result.sum(-1), torch.ones(shape[:-1], dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.sum(-2), torch.ones(shape[:-1], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 2), (6, 6), (3, 4, 4)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 2.0])
def test_the_gradient_is_that_of_the_unrolled_scalings(shape: tuple[int, ...], scale: float) -> None:
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fast, naive = (scores(*shape, scale=scale).requires_grad_() for _ in range(2))
    (sinkhorn(fast, iterations=5_000, tolerance=1e-12) * probe).sum().backward()
    (_unrolled(naive, 2_000) * probe).sum().backward()
    torch.testing.assert_close(fast.grad, naive.grad, rtol=1e-4, atol=1e-6)


def _unrolled(values: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        values = values - torch.logsumexp(values, -1, keepdim=True)
        values = values - torch.logsumexp(values, -2, keepdim=True)
    return values.exp()


def test_in_the_cold_it_is_the_best_assignment_and_the_gradient_vanishes() -> None:
    warm = scores(8, 8)
    cold = (warm / 1e-3).requires_grad_()
    result = sinkhorn(cold, iterations=5_000)
    best = torch.nn.functional.one_hot(assign(warm)).double()
    torch.testing.assert_close(result, best, atol=1e-2, rtol=0)
    (result * scores(8, 8)).sum().backward()
    assert cold.grad is not None
    assert float(cold.grad.abs().max()) < 1e-2


def test_scores_that_would_overflow_are_no_trouble() -> None:
    result = sinkhorn(torch.tensor([[4e4, 0.0], [0.0, 4e4]]))
    torch.testing.assert_close(result, torch.eye(2))
