"""Singular values and vectors of networks, by either route, against definitions."""

import math

import pytest
import torch
from torch import Tensor

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.progress import Progress
from weightspace.spectra import spectrum

SHAPES = [(8, 8), (12, 5), (5, 12), (1, 7), (7, 1), (1, 1)]


def planted(values: list[float], shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Return a float64 matrix with these singular values and random vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64)).Q for size in shape
    )
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.3, 1.0])
def test_vectors_are_orthonormal_and_give_back_the_truncated_matrix(shape: tuple[int, int], gamma: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = spectrum({"weight": matrix}, gamma=gamma).layers["weight"]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = int((values >= gamma * values[0] * (1 - 1e-12)).sum())
    assert layer.left.shape == (shape[0], count)
    assert layer.right.shape == (shape[1], count)
    torch.testing.assert_close(layer.values, values, rtol=1e-7, atol=1e-8)
    for vectors in (layer.left, layer.right):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-11)
    truncated = (left[:, :count] * values[:count]) @ right[:count]
    torch.testing.assert_close((layer.left * layer.values[:count]) @ layer.right.T, truncated, rtol=0, atol=1e-11)


def test_the_fast_route_is_as_good_as_the_slow_one_down_to_its_smallest_cut() -> None:
    matrix = planted([10 ** (-place / 30) for place in range(200)], (300, 200))
    slow, fast = (spectrum({"weight": matrix}, gamma=gamma).layers["weight"] for gamma in (0.0, 0.01))
    count = fast.left.shape[1]
    assert count == 61
    polar = slow.left[:, :count] @ slow.right[:, :count].T
    torch.testing.assert_close(fast.left @ fast.right.T, polar, rtol=0, atol=1e-11)
    torch.testing.assert_close(fast.values[:count], slow.values[:count], rtol=1e-11, atol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_scale_of_a_matrix_scales_its_values_and_nothing_else(scale: float, gamma: float) -> None:
    matrix = planted([1.0, 0.7, 0.2], (4, 3))
    layer = spectrum({"weight": scale * matrix}, gamma=gamma).layers["weight"]
    torch.testing.assert_close(layer.values / scale, torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64))
    assert layer.kept(0.3) == 2


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_equal_values_count_together(gamma: float) -> None:
    assert spectrum({"weight": planted([1.0] * 6, (9, 6))}, gamma=gamma).layers["weight"].kept(gamma) == 6
    assert spectrum({"weight": planted([1.0, 0.5, 0.5, 0.1], (9, 6))}, gamma=0.5).layers["weight"].kept(0.5) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_rounding_never_count(dtype: torch.dtype) -> None:
    matrix = planted([1.0, 0.5, 0.25], (40, 30)).to(dtype)
    layer = spectrum({"weight": matrix}).layers["weight"]
    assert layer.kept(0) == 3
    assert layer.left.shape == (40, 3)
    assert len(layer.values) == 30


def test_a_zero_matrix_has_values_and_no_vectors() -> None:
    for gamma in (0.0, 0.3):
        layer = spectrum({"weight": torch.zeros(4, 3)}, gamma=gamma).layers["weight"]
        assert layer.values.tolist() == [0, 0, 0]
        assert layer.left.shape == (4, 0)
        assert layer.kept(gamma) == 0
        assert layer.effective_rank == 0


@pytest.mark.parametrize(
    ("values", "rank"), [([3.0] * 5, 5.0), ([2.0, 0.0], 1.0), ([0.5, 0.5, 1.0], math.exp(1.5 * math.log(2)))]
)
def test_the_effective_rank_is_that_of_roy_and_vetterli(values: list[float], rank: float) -> None:
    assert spectrum({"weight": planted(values, (7, 6))}).layers["weight"].effective_rank == pytest.approx(rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_precision_is_decomposed_in_float64_and_left_as_it_is(dtype: torch.dtype) -> None:
    matrix = planted([1.0, 0.5, 0.25], (6, 3)).to(dtype).requires_grad_()
    before = matrix.detach().clone()
    layer = spectrum({"weight": matrix}).layers["weight"]
    assert layer.values.dtype == layer.left.dtype == torch.float64
    assert not layer.values.requires_grad
    torch.testing.assert_close(layer.values, torch.linalg.svdvals(before.double()))
    assert torch.equal(matrix.detach(), before)


def test_progress_is_reported_for_every_matrix() -> None:
    told: list[Progress] = []
    spectrum({"a.weight": torch.eye(2), "b.weight": torch.eye(2)}, on_progress=told.append)
    assert told == [Progress("matrix", 1, 2, name="a.weight"), Progress("matrix", 2, 2, name="b.weight")]


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_a_gamma_that_is_no_share_is_an_error(gamma: float) -> None:
    with pytest.raises(WeightspaceError, match="0 to 1; found"):
        spectrum({"weight": torch.eye(2)}, gamma=gamma)


def test_weights_that_are_not_finite_are_an_error_that_names_them_and_biases_are_not_looked_at() -> None:
    state = {"fc.weight": torch.eye(2), "fc.bias": torch.full((2,), math.nan)}
    spectrum(state)
    state["fc.weight"][0, 1] = math.inf
    with pytest.raises(CheckpointError, match=r"a\.pt: 1 tensor \('fc\.weight' 1 of 4\)"):
        spectrum(state, label="a.pt")
