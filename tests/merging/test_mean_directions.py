"""Multislerp and the Karcher mean."""

import math

import pytest
import torch
from large import assert_agrees, large
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge


def mean(method: str, *vectors: list[float], base: list[float] | None = None, **parameters: object) -> list[float]:
    states = [{"w": torch.tensor(vector)} for vector in vectors]
    weights = parameters.pop("weights", None)
    origin = None if base is None else {"w": torch.tensor(base)}
    return merge(states, method, base=origin, weights=weights, parameters=parameters)["w"].tolist()  # type: ignore[arg-type]


both = pytest.mark.parametrize("method", ["multislerp", "karcher"])


@both
def test_the_mean_direction_of_two_axes_is_the_diagonal_with_their_mean_norm(method: str) -> None:
    assert mean(method, [2.0, 0.0], [0.0, 4.0]) == pytest.approx([3 * math.sqrt(0.5)] * 2)
    third = 3 / math.sqrt(3)
    assert mean(method, [3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]) == pytest.approx([third] * 3)


@both
def test_a_zero_tensor_has_no_direction_but_a_length(method: str) -> None:
    assert mean(method, [3.0, 0.0], [0.0, 0.0], [0.0, 0.0]) == pytest.approx([1, 0])
    assert mean(method, [0.0, 0.0], [0.0, 0.0]) == [0, 0]


@both
def test_directions_that_cancel_give_zero(method: str) -> None:
    assert mean(method, [1.0, 2.0], [-1.0, -2.0]) == [0, 0]
    assert mean(method, [1.0, 2.0], [-3.0, -6.0]) == [0, 0]
    assert mean(method, [0.1], [-0.7]) == [0]


def test_with_a_base_what_cancels_gives_the_base() -> None:
    """Where mergekit raises: tensors that are frozen in all models, and antipodal differences."""
    base = [0.3, -1.7, 0.0]
    assert torch.tensor(mean("multislerp", base, base, base=base)).equal(torch.tensor(base))
    assert mean("multislerp", [1.3, -1.7, 0.0], [-0.7, -1.7, 0.0], base=base) == pytest.approx(base)


def test_weights_turn_the_mean_and_make_it_longer() -> None:
    found = mean("multislerp", [1.0, 0.0], [0.0, 1.0], weights=[3, 1])
    assert found == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])
    found = mean("multislerp", [1.0, 0.0], [0.0, 1.0], weights=[3, 1], normalize_weights=False)
    assert found == pytest.approx([4 * 3 / math.sqrt(10), 4 / math.sqrt(10)])


def test_the_karcher_mean_is_where_the_logarithms_cancel() -> None:
    """Three unequal angles on a circle: the mean of the angles, which the mean of the directions is not."""
    angles = [0.0, 0.3, 1.5]
    models = [{"w": torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64)} for a in angles]
    found = merge(models, "karcher", parameters={"max_iter": 100, "tol": 1e-14})["w"]
    assert math.atan2(found[1], found[0]) == pytest.approx(0.6, abs=1e-12)
    chord = merge(models, "multislerp")["w"]
    assert abs(math.atan2(chord[1], chord[0]) - 0.6) > 0.01


def test_the_karcher_mean_stops_after_max_iter_steps_and_below_tol() -> None:
    vectors = [normals(seed, (50,)).abs() + 3 * normals(seed, (50,)) for seed in range(3)]
    exact = karcher(vectors, max_iter=1000, tol=0.0)
    errors = [error(karcher(vectors, max_iter=steps, tol=0.0), exact) for steps in (1, 2, 5)]
    assert errors[0] > errors[1] > errors[2]
    assert error(karcher(vectors, max_iter=1000, tol=10.0), karcher(vectors, max_iter=1, tol=0.0)) > 1e-6


def karcher(vectors: list[Tensor], **parameters: float) -> Tensor:
    return merge([{"w": vector.double()} for vector in vectors], "karcher", parameters=parameters)["w"]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("noise", [3.0, 0.1])
def test_a_tensor_of_several_chunks_agrees_with_the_oracle(count: int, noise: float) -> None:
    common = large(9)
    tensors = [common + large(seed, scale=noise) for seed in range(1, count + 1)]
    assert_agrees("karcher", tensors)
    weights = [0.5, 1.5, 0.25, 1.0, 2.0][:count]
    assert_agrees("multislerp", tensors, weights=weights)
    assert_agrees("multislerp", tensors, common, weights=weights)
    assert_agrees("multislerp", tensors, common, weights=weights, normalize_weights=False)
