"""Mirsky's bound beside the distance: never above it, reached where only values differ."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightspace.errors import CheckpointError
from weightspace.spectra import spectral_distances, spectrum
from weightspace.spectra.distances import SpectralDistance

Rotation = Callable[[int, int], Tensor]


def distance(a: Tensor, b: Tensor) -> SpectralDistance:
    return spectral_distances(spectrum({"weight": a}), spectrum({"weight": b})).total


@pytest.mark.parametrize("seed", range(10))
def test_no_rotation_brings_a_matrix_below_mirsky_s_bound(seed: int, orthogonal: Rotation) -> None:
    """T3: ‖A − PBQᵀ‖² ≥ Σ(σ_i^a − σ_i^b)² for every P and Q, with equality for those that align all vectors."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    bound = distance(a, b).bound
    moves = [(orthogonal(6, 10 * seed + i), orthogonal(4, 10 * seed + i + 5)) for i in range(5)]
    moves.append((torch.eye(6).double()[torch.randperm(6, generator=generator)], torch.eye(4).double().flip(0)))
    for left, right in moves:
        moved = left @ b @ right.T
        found = distance(a, moved)
        assert found.squared == pytest.approx(float((a - moved).square().sum()))
        assert found.bound == pytest.approx(bound)
        assert found.squared >= bound
    (u, _, v), (_, t, _) = (torch.linalg.svd(one, full_matrices=False) for one in (a, b))
    aligned = distance(a, (u * t) @ v)
    assert aligned.squared == pytest.approx(bound)
    assert aligned.direction == pytest.approx(0, abs=1e-10)


def test_figures_are_relative_to_unrelated_matrices() -> None:
    a, b = torch.diag(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    found = distance(a, b)
    assert (found.squared, found.bound, found.norms) == pytest.approx((5, 1, 5))
    assert (found.relative, found.gap, found.direction) == pytest.approx((1, 0.2, 0.8))
    assert distance(a, -a).relative == pytest.approx(2)
    assert distance(a, torch.zeros(2, 2)).gap == pytest.approx(1)


def test_equal_and_zero_matrices_have_no_direction() -> None:
    same = distance(torch.eye(3), torch.eye(3))
    assert (same.relative, same.gap) == (0, 0)
    assert math.isnan(same.direction)
    nothing = distance(torch.zeros(2, 3), torch.zeros(2, 3))
    assert math.isnan(nothing.relative)
    assert math.isnan(nothing.gap)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_never_puts_the_bound_above_the_distance(seed: int) -> None:
    a = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = distance(a, 0.9 * a)
    assert 0 < found.bound <= found.squared
    assert found.direction == pytest.approx(0, abs=1e-12)


def test_a_network_s_distance_is_the_sum_over_its_matrices() -> None:
    a, b = ({"x.weight": torch.randn(4, 3), "y.weight": torch.randn(2, 4), "y.bias": torch.randn(2)} for _ in range(2))
    found = spectral_distances(spectrum(a), spectrum(b))
    for field in ("squared", "bound", "norms"):
        assert getattr(found.total, field) == pytest.approx(
            sum(getattr(one, field) for one in found.per_layer.values()), rel=1e-9
        )
    squared = sum(float((a[name] - b[name]).square().sum()) for name in ("x.weight", "y.weight"))
    assert found.total.squared == pytest.approx(squared, rel=1e-5)


def test_networks_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"\(2, 2\) against \(3, 3\)"):
        distance(torch.eye(2), torch.eye(3))
