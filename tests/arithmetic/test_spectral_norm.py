"""Spectral norm's vectors belong to the weight that comes out."""

import pytest
import torch
from parametrized_networks import BOTH, SPECTRAL_NORMS, equal, fine_tunes, largest_singular_value, weight_of
from torch import Tensor

from weightspace.arithmetic.mean import mean
from weightspace.arithmetic.spectral_norm import SpectralModel, spectral_vectors
from weightspace.arithmetic.weight_norm import Held
from weightspace.merging import interpolate


def vectors(merged: Tensor, *models: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    result = spectral_vectors(merged, [SpectralModel(Held(weight), left, right) for weight, left, right in models])
    assert result.right is not None
    return result.left, result.right


def leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    left, _, right = torch.linalg.svd(matrix.double())
    return left[:, 0], right[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (7, 5), (5, 7), (40, 90), (90, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vectors_are_those_of_the_singular_value_decomposition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    left, right = vectors(b, (a, *leading(a)))
    for result, expected in zip((left, right), leading(b), strict=True):
        assert abs(float(result @ expected)) == pytest.approx(1, abs=1e-10)
        assert float(result.norm()) == pytest.approx(1, abs=1e-12)
    assert float(left @ b.double() @ right) > 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("shape", [(9, 1), (1, 9), (1, 1)])
def test_vectors_of_one_number_may_have_either_sign(shape: tuple[int, int], sign: float) -> None:
    a, b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(4))
    u, v = leading(a)
    left, right = vectors(b, (a, sign * u, sign * v))
    assert float(left @ b.double() @ right) == pytest.approx(float(b.norm()), rel=1e-6)


def test_a_start_at_right_angles_to_the_answer_is_left_behind() -> None:
    a, b = torch.diag(torch.tensor([3.0, 1, 0.5])), torch.diag(torch.tensor([1.0, 5, 0.5]))
    first, second, _ = torch.eye(3)
    left, right = vectors((a + b) / 2, (a, first, first), (b, second, second))
    torch.testing.assert_close(left.abs(), second.double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(right.abs(), second.double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-3])
def test_singular_values_that_nearly_agree_are_no_hindrance(gap: float) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    values = torch.cat([torch.tensor([1 + gap, 1], dtype=torch.float64), torch.linspace(0.999, 0.1, 58)])
    matrix = left @ torch.diag(values) @ right
    u, v = vectors(matrix, (matrix + 1, left[:, 5], right[5]))
    assert float(u @ matrix @ v) == pytest.approx(1 + gap, rel=1e-9)


def test_vectors_point_where_those_of_the_first_model_do() -> None:
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    u, v = leading(a)
    for sign in (1, -1):
        left, right = vectors(a * 1.1, (a, sign * u, sign * v))
        torch.testing.assert_close(left, sign * u)
        torch.testing.assert_close(right, sign * v)


@pytest.mark.parametrize("merged", [torch.zeros(3, 2), torch.full((3, 2), float("nan"))])
def test_a_weight_without_a_direction_keeps_the_first_vectors(merged: Tensor) -> None:
    u, v = torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 0])
    left, right = vectors(merged, (torch.ones(3, 2), u, v))
    assert (left.tolist(), right.tolist()) == (u.tolist(), v.tolist())


def test_vectors_that_are_not_finite_are_no_start() -> None:
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3))
    left, right = vectors(b, (a, torch.full((6,), float("nan")), torch.full((4,), float("nan"))))
    assert float(left @ b.double() @ right) == pytest.approx(float(torch.linalg.matrix_norm(b, 2)), rel=1e-6)


@pytest.mark.parametrize("kind", SPECTRAL_NORMS)
def test_the_mean_of_fine_tunes_has_spectral_norm_one(kind: str) -> None:
    states = fine_tunes(SPECTRAL_NORMS[kind], 3)
    weight = weight_of(SPECTRAL_NORMS[kind], mean(states))
    assert largest_singular_value(SPECTRAL_NORMS[kind], weight) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", SPECTRAL_NORMS)
def test_copies_keep_their_vectors_bit_for_bit(kind: str) -> None:
    (state,) = fine_tunes(SPECTRAL_NORMS[kind], 1)
    state = {name: tensor * 1.01 if name.endswith("_u") else tensor for name, tensor in state.items()}  # as it is
    assert equal(mean([dict(state) for _ in range(3)]), state)


@pytest.mark.parametrize("position", [-0.5, 0.3, 1.5])
@pytest.mark.parametrize("kind", ["linear", "transposed and square", "convolution, old"])
def test_the_line_has_spectral_norm_one(kind: str, position: float) -> None:
    a, b = fine_tunes(SPECTRAL_NORMS[kind], 2)
    weight = weight_of(SPECTRAL_NORMS[kind], interpolate(a, b, position))
    assert largest_singular_value(SPECTRAL_NORMS[kind], weight) == pytest.approx(1, abs=1e-5)
    assert equal(interpolate(a, b, 0), a)
    assert equal(interpolate(a, b, 1), b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_have_the_dtype_of_the_models(dtype: torch.dtype) -> None:
    states = [
        {name: tensor.to(dtype) for name, tensor in state.items()} for state in fine_tunes(SPECTRAL_NORMS["linear"], 2)
    ]
    result = mean(states)
    assert {tensor.dtype for tensor in result.values()} == {dtype}
    left, right = (result[f"parametrizations.weight.0._{end}"].double() for end in "uv")
    matrix = result["parametrizations.weight.original"].double()
    assert float(left @ matrix @ right) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-2)


def test_spectral_norm_on_weight_norm_is_one_of_the_merged_weight() -> None:
    states = fine_tunes(BOTH, 3)
    assert largest_singular_value(BOTH, weight_of(BOTH, mean(states))) == pytest.approx(1, abs=1e-5)
    assert equal(mean([states[0]] * 2), states[0])


def test_vectors_from_a_generator_are_recomputed() -> None:
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(3, 6, 4, 3, generator=generator)
    states = [{"weight": weight, "u0": torch.ones(1, 6), "sv0": torch.ones(1)} for weight in weights]
    result = mean(states)
    left, values, _ = torch.linalg.svd(result["weight"].flatten(1))
    assert float(result["sv0"]) == pytest.approx(float(values[0]), rel=1e-5)
    assert abs(float(result["u0"][0] @ left[:, 0])) == pytest.approx(1, abs=1e-5)
