import pytest
import torch
from large import assert_agrees, large
from samples import normals, same_bits

from weightspace.merging import merge


def test_differences_are_added_to_the_base() -> None:
    base, a, b = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([2.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}
    assert merge([a, b], "task_arithmetic", base=base)["w"].tolist() == [2, 3]
    assert merge([a, b], "task_arithmetic", base=base, weights=[1, -0.5])["w"].tolist() == [2, 0]
    options = {"lambda": 0.5, "normalize": True}
    assert merge([a, b], "task_arithmetic", base=base, weights=[1, 3], parameters=options)["w"].tolist() == [
        1.125,
        1.75,
    ]


def test_adding_and_subtracting_a_task_vector_returns_the_base_bit_for_bit() -> None:
    base, model = {"w": normals(0, (50, 40))}, {"w": normals(1, (50, 40))}
    merged = merge([model, {"w": model["w"].clone()}], "task_arithmetic", base=base, weights=[1, -1])
    assert same_bits(merged["w"], base["w"])


def test_a_model_of_weight_zero_has_no_influence_not_even_with_nan() -> None:
    base, model, broken = {"w": torch.ones(3)}, {"w": torch.arange(3.0)}, {"w": torch.full((3,), torch.nan)}
    merged = merge([model, broken], "task_arithmetic", base=base, weights=[1, 0], allow_nonfinite=True)
    assert merged["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_wise_ft_ends_in_the_base_and_in_the_fine_tuned_model_exactly(dtype: torch.dtype) -> None:
    base, model = {"w": normals(0, (50, 40), dtype)}, {"w": normals(1, (50, 40), dtype)}
    assert same_bits(merge([model], "wise_ft", base=base, parameters={"alpha": 0})["w"], base["w"])
    assert same_bits(merge([model], "wise_ft", base=base, parameters={"alpha": 1})["w"], model["w"])


def test_several_chunks_agree_with_the_oracle() -> None:
    models, base = [large(seed) for seed in (1, 2, 3)], large(0)
    assert_agrees("task_arithmetic", models, base, [0.5, 1.0, -0.3], **{"lambda": 0.7})
    assert_agrees("task_arithmetic", models, base, [0.5, 1.0, -0.3], normalize=True)
    assert_agrees("wise_ft", models[:1], base, alpha=0.3)
    assert_agrees("linear", models, weights=[0.5, 1.0, -0.3])
    assert_agrees("passthrough", models[:1], scale=0.3)
