import math

import pytest
import torch
from large import assert_agrees, large
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge


def nuslerp(a: Tensor, b: Tensor, weights: list[float] | None = None, **parameters: bool) -> Tensor:
    return merge([{"w": a}, {"w": b}], "nuslerp", weights=weights, parameters=parameters)["w"]


def test_the_weights_say_where_on_the_arc() -> None:
    a, b = torch.eye(2, dtype=torch.float64)
    for weights, t in (([1, 1], 0.5), ([3, 1], 0.25), ([0, 2], 1.0), ([3, -1], -0.5)):
        expected = [math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)]
        assert nuslerp(a, b, weights).tolist() == pytest.approx(expected, abs=1e-15)


def test_weights_that_cancel_give_the_midpoint() -> None:
    a, b = torch.eye(2, dtype=torch.float64)
    assert nuslerp(a, b, [1, -1]).tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_an_angle_of_a_hundredth_of_a_degree_is_still_an_arc() -> None:
    """Where slerp has long taken the straight line: here far beyond both ends, where the two differ."""
    angle = math.radians(0.01)
    a, b = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    found = nuslerp(a, b, [-999, 1000])  # t = 1000
    assert found.tolist() == pytest.approx([math.cos(1000 * angle), math.sin(1000 * angle)], abs=1e-9)


@pytest.mark.parametrize("parameters", [{}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}], ids=str)
def test_scalars_and_opposite_vectors_have_a_straight_line_between_them(parameters: dict[str, bool]) -> None:
    """Their sine is 0, not the rounding of float32, by which 0.1 and -0.7 became -2934."""
    for a, b in ((0.1, 0.7), (0.1, -0.7), (0.123, -0.456), (-1.7, 0.9)):
        found = nuslerp(torch.tensor([[a]]), torch.tensor([[b]]), [1, 3], **parameters)
        assert found.item() == pytest.approx(0.25 * a + 0.75 * b, rel=1e-6)
    vector = normals(0, (100, 1))
    for factor in (-1.0, -2.0, -0.6, 0.3):
        found = nuslerp(vector, factor * vector, [1, 3], **parameters)
        assert error(found, (0.25 + 0.75 * factor) * vector) < 1e-6


def test_a_row_of_zeros_counts_as_orthogonal() -> None:
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    half = math.sqrt(0.5)
    found = nuslerp(a, b, nuslerp_flatten=False)
    assert found.flatten().tolist() == pytest.approx([3 * half, 4 * half, half, half])


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize(
    ("shape", "flatten", "row_wise"),
    [
        ((3 * 2**17 + 5,), True, False),
        ((3, 2**17 + 1), True, False),
        ((3 * 2**17 + 5,), False, False),
        ((1111, 355), False, False),
        ((3, 2**17 + 1), False, False),
        ((1111, 355), False, True),
        ((2**17 + 1, 3), False, True),
        ((700, 3, 9, 23), False, True),
    ],
)
def test_a_tensor_of_several_chunks_agrees_with_the_oracle(
    shape: tuple[int, ...], with_base: bool, flatten: bool, row_wise: bool
) -> None:
    models, base = [large(seed, shape) for seed in (1, 2)], large(0, shape)
    options = {"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
    assert_agrees("nuslerp", models, base if with_base else None, [0.3, 0.9], **options)
