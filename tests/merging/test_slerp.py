import math

import pytest
import torch
from large import assert_agrees, large
from samples import error, normals, same_bits

from weightspace.merging import merge


def slerp(a: list[float], b: list[float], t: float) -> list[float]:
    states = [{"w": torch.tensor(vector, dtype=torch.float64)} for vector in (a, b)]
    return merge(states, "slerp", parameters={"t": t})["w"].tolist()


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, 1.5, -1.0])
def test_the_arc_between_two_axes_is_a_circle_that_extends_beyond_them(t: float) -> None:
    expected = [math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)]
    assert slerp([1, 0], [0, 1], t) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_ends_are_the_models_exactly(dtype: torch.dtype) -> None:
    a, b = ({"w": normals(seed, (40, 30), dtype)} for seed in (0, 1))
    assert same_bits(merge([a, b], "slerp", parameters={"t": 0})["w"], a["w"])
    assert same_bits(merge([a, b], "slerp", parameters={"t": 1})["w"], b["w"])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_the_reversed_arc_is_the_same_arc(t: float) -> None:
    a, b = ({"w": normals(seed, (40, 30))} for seed in (0, 1))
    there = merge([a, b], "slerp", parameters={"t": t})["w"]
    back = merge([b, a], "slerp", parameters={"t": 1 - t})["w"]
    assert error(there, back) < 1e-6


def test_the_tensors_keep_their_lengths() -> None:
    assert slerp([2, 0], [0, 4], 0.5) == pytest.approx([2 * math.sqrt(0.5), 4 * math.sqrt(0.5)])


def test_above_a_cosine_of_9995_the_line_is_straight() -> None:
    for angle, straight in ((0.0316, True), (0.0317, False), (math.pi - 0.0316, True), (math.pi - 0.0317, False)):
        end = [math.cos(angle), math.sin(angle)]
        line = [0.7 + 0.3 * end[0], 0.3 * end[1]]
        assert (slerp([1, 0], end, 0.3) == pytest.approx(line, abs=1e-12)) == straight, angle


def test_a_zero_tensor_counts_as_orthogonal() -> None:
    assert slerp([0, 0], [3, 4], 0.5) == pytest.approx([3 * math.sqrt(0.5), 4 * math.sqrt(0.5)])
    assert slerp([3, 4], [0, 0], 0.5) == pytest.approx([3 * math.sqrt(0.5), 4 * math.sqrt(0.5)])
    assert slerp([0, 0], [0, 0], 0.5) == [0, 0]


def test_scalars_have_a_straight_line_between_them_whatever_their_signs() -> None:
    for a, b in ((0.1, 0.7), (0.1, -0.7), (-1.7, 0.9)):
        assert slerp([a], [b], 0.25) == pytest.approx([0.75 * a + 0.25 * b])


@pytest.mark.parametrize("t", [0.3, 1.3])
@pytest.mark.parametrize("noise", [1.0, 0.02, 1e-4])
def test_a_tensor_of_several_chunks_agrees_with_the_oracle(t: float, noise: float) -> None:
    a = large(0)
    assert_agrees("slerp", [a + large(1, scale=noise)], a, t=t)
