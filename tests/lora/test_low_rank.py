"""A weight with factors on top, whole against in chunks, and against the product made in float64."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from weightspace.lora.low_rank import Adapted, Scaled
from weightspace.merging.methods._tensor_stack import InMemory
from weightspace.threads import torch_threads

Normal = Callable[..., Tensor]

SHAPES = [(1, 1), (1, 300), (300, 1), (37, 53), (5, 20_000), (700, 70), (6, 5, 3, 2), (6, 5, 4)]


def factors(normal: Normal, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    ones = [1] * (len(shape) - 2)
    return normal(rank, *shape[1:], dtype=dtype), normal(shape[0], rank, *ones, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_weight_and_the_scaled_product(shape: tuple[int, ...], dtype: torch.dtype, normal: Normal) -> None:
    weight = normal(*shape, dtype=dtype)
    a, b = factors(normal, shape, 3, dtype)
    adapted = Adapted(InMemory(weight), a, b, 1.7)
    product = (b.double().reshape(shape[0], 3) @ a.double().reshape(3, -1)).view(shape)
    expected = weight.double() + 1.7 * product
    assert adapted.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert adapted.shape == shape
    found = adapted.read(0, weight.numel())
    assert found.dtype == adapted.dtype
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.double(), expected.view(-1), rtol=bound, atol=10 * bound)


def test_a_weight_kept_as_in_out_gets_the_transposed_product(normal: Normal) -> None:
    weight, a, b = normal(30, 40), normal(2, 30), normal(40, 2)
    found = Adapted(InMemory(weight), a, b, 0.5, transposed=True).read(0, 1200)
    torch.testing.assert_close(found.view(30, 40), weight + 0.5 * (b @ a).T)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_element_has_the_same_bits_in_every_range(shape: tuple[int, ...], normal: Normal) -> None:
    weight = normal(*shape, dtype=torch.bfloat16)
    adapted = Adapted(InMemory(weight), *factors(normal, shape, 8, torch.float32), 0.3)
    count = weight.numel()
    whole = adapted.read(0, count)
    steps = torch.linspace(0, count, 14).long().unique().tolist()
    torch.set_num_threads(2)
    try:
        with torch_threads(1):
            chunks = [adapted.read(start, stop) for start, stop in pairwise(steps)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.cat(chunks), whole)
    assert torch.equal(adapted.read(count // 3, count), whole[count // 3 :])
    assert len(adapted.read(count // 2, count // 2)) == 0


def test_a_float32_weight_is_not_modified(normal: Normal) -> None:
    weight = normal(4, 5)
    before = weight.clone()
    Adapted(InMemory(weight), normal(2, 5), normal(4, 2), 1.0).read(3, 20)
    assert torch.equal(weight, before)


def test_never_more_than_the_range_and_a_block_is_made(normal: Normal, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    matmul = torch.Tensor.__matmul__

    def spy(self: Tensor, other: Tensor) -> Tensor:
        made.append(matmul(self, other))
        return made[-1]

    adapted = Adapted(InMemory(normal(4000, 64)), normal(2, 64), normal(4000, 2), 1.0)
    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    adapted.read(1000, 9000)
    assert sum(one.numel() for one in made) <= 8000 + 2 * 2**14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_scaled_tensor_is_the_tensor_times_the_number_rounded_once(dtype: torch.dtype, normal: Normal) -> None:
    tensor = normal(7, 5, dtype=dtype)
    scaled = Scaled(InMemory(tensor), 0.3)
    expected = (tensor.double() * 0.3).to(scaled.dtype).view(-1)
    assert scaled.shape == (7, 5)
    assert torch.equal(scaled.read(0, 35), expected)
    assert torch.equal(scaled.read(8, 21), expected[8:21])
