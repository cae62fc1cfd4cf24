import math
from typing import Any

import oracles
import pytest
import torch
from samples import normals
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.merging import merge
from weightspace.merging.methods import _random_masks


def della(delta: Tensor, **parameters: Any) -> Tensor:
    """Return what is left of a difference."""
    return merge([{"w": delta}], "della_linear", base={"w": torch.zeros_like(delta)}, parameters=parameters)["w"]


def test_an_element_stays_the_more_often_the_larger_it_is_in_its_row() -> None:
    """Over 20,000 rows the share of each rank is its probability within 5 σ; over all ranks χ² is its 9 ± 5 · √18."""
    rows, ranks, density, epsilon = 20_000, 9, 0.4, 0.3
    delta = normals(0, (rows, ranks))
    kept = della(delta, density=density, epsilon=epsilon, rescale="none") != 0
    rank = delta.abs().argsort(dim=1).argsort(dim=1)
    chi = 0.0
    for r in range(ranks):
        p = density - epsilon + 2 * epsilon * r / (ranks - 1)
        z = (kept[rank == r].double().mean().item() - p) / math.sqrt(p * (1 - p) / rows)
        assert abs(z) < 5, r
        chi += z * z
    assert chi < ranks + 5 * math.sqrt(2 * ranks)


def test_over_seeds_too() -> None:
    delta, seeds = torch.tensor([[3.0, -1.0, 2.0, -4.0], [1.0, 2.0, 3.0, 4.0]]), 400
    kept = sum((della(delta, density=0.5, epsilon=0.2, seed=seed) != 0).double() for seed in range(seeds)) / seeds
    expected = torch.as_tensor(oracles.della_probabilities(delta.double().numpy(), 0.5, 0.2))
    assert ((kept - expected).abs() < 5 * (expected * (1 - expected) / seeds).sqrt()).all()


@pytest.mark.parametrize("shape", [(3000,), (30, 7, 100), (20, 6, 5, 30)])
def test_ranks_run_along_dim_1_and_through_all_of_a_vector(shape: tuple[int, ...]) -> None:
    delta = normals(0, shape)
    kept = (della(delta, density=0.5, epsilon=0.4) != 0).double()
    p = torch.as_tensor(oracles.della_probabilities(delta.double().numpy(), 0.5, 0.4))
    large = p > 0.5
    for part in (large, ~large):
        expected, deviation = p[part].sum(), (p[part] * (1 - p[part])).sum().sqrt()
        assert abs(kept[part].sum() - expected) < 5 * deviation


def test_a_row_of_one_element_stays_with_the_density() -> None:
    for shape in ((4000, 1), (4000, 1, 1)):
        share = (della(torch.ones(shape), density=0.3, epsilon=0.2) != 0).double().mean().item()
        assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)


def test_equal_sizes_have_the_ranks_of_their_positions() -> None:
    kept = (della(torch.ones(5000, 3), density=0.5, epsilon=0.4) != 0).double().mean(dim=0)
    assert kept.tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.035)  # 5 σ of the middle one


@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15), (0.9, 0.15), (0.85, 0.15), (0.0, 0.0), (0.5, 0.6)]
)
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_probabilities_beyond_0_and_1_are_refused(density: float, epsilon: float, method: str) -> None:
    """0.15 − 0.15 is 0, and 0.85 + 0.15 is 1: both bounds are excluded."""
    state, base = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    with pytest.raises(WeightspaceError, match=rf"density {density:g} and epsilon {epsilon:g} give keep probabilities"):
        merge([state], method, base=base, parameters={"density": density, "epsilon": epsilon})


@pytest.mark.parametrize("epsilon", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_density_1_keeps_everything_whatever_epsilon_is(epsilon: float, method: str) -> None:
    delta = normals(0, (6, 5))
    found = merge([{"w": delta}], method, base={"w": torch.zeros(6, 5)}, parameters={"density": 1, "epsilon": epsilon})[
        "w"
    ]
    assert torch.equal(found, delta)


def test_epsilon_0_is_dare() -> None:
    delta = normals(0, (60, 50))
    for rescale in ("l1", "density", "none"):
        expected = merge(
            [{"w": delta}],
            "dare_linear",
            base={"w": torch.zeros(60, 50)},
            parameters={"density": 0.4, "rescale": rescale},
        )["w"]
        assert torch.equal(della(delta, density=0.4, epsilon=0, rescale=rescale), expected)


def test_the_l1_norm_of_the_difference_is_restored() -> None:
    delta = normals(0, (700, 300))
    found = della(delta, density=0.3)
    assert found.abs().double().sum().item() == pytest.approx(delta.abs().double().sum().item(), rel=1e-6)


def test_masks_that_have_no_room_are_drawn_again_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 999, so that chunks and blocks do not divide each other, and the masks of the second pass matter."""
    delta = normals(0, (700, 999))
    for epsilon in (0.0, 0.2):
        expected = della(delta, density=0.5, epsilon=epsilon, rescale="l1")
        for room in (0, 20_000):
            monkeypatch.setattr(_random_masks, "_KEPT", room)
            assert torch.equal(della(delta, density=0.5, epsilon=epsilon, rescale="l1"), expected)
        monkeypatch.undo()
