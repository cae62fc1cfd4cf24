import pytest
import torch

from weightspace.errors import WeightspaceError
from weightspace.merging import merge


def test_a_weighted_mean_is_the_one_worked_out_by_hand() -> None:
    states = [{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([5.0, 0.0])}]
    assert merge(states, weights=[3, 1])["w"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("models", [2, 3, 9])
def test_the_result_is_the_correctly_rounded_mean(dtype: torch.dtype, models: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(10_000, generator=generator).to(dtype)} for _ in range(models)]
    weights = torch.rand(models, generator=generator).double() + 0.1
    exact = sum(w * state["w"].double() for w, state in zip(weights, states, strict=True)) / weights.sum()
    found = merge(states, weights=weights.tolist())["w"]
    if dtype == torch.float32:
        assert (found - exact).abs().max() < 1e-6
    else:
        assert (found == exact.to(dtype)).double().mean() > 0.999


def test_without_normalisation_the_weighted_sum_comes_out() -> None:
    states = [{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([5.0, 0.0])}]
    assert merge(states, weights=[2, -1], parameters={"normalize": False})["w"].tolist() == [-3.0, 8.0]
    assert merge(states, weights=[1, -1], parameters={"normalize": False})["w"].tolist() == [-4.0, 4.0]


def test_a_model_of_weight_zero_has_no_influence_not_even_with_nan() -> None:
    a, b = {"w": torch.tensor([0.1, 0.7])}, {"w": torch.tensor([float("nan"), float("inf")])}
    assert torch.equal(merge([b, a], weights=[0, 0.3], allow_nonfinite=True)["w"], a["w"])


def test_values_whose_difference_overflows_still_have_a_mean() -> None:
    largest = torch.finfo(torch.float32).max
    merged = merge([{"w": torch.tensor([largest, 1.0])}, {"w": torch.tensor([-largest, 2.0])}])
    assert merged["w"].tolist() == [0.0, 1.5]


def test_infinities_that_agree_survive() -> None:
    mask = torch.tensor([-float("inf"), 0.0])
    assert torch.equal(merge([{"mask": mask}, {"mask": mask.clone()}], allow_nonfinite=True)["mask"], mask)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2, 3], "3 weights for 2 models"),
        ([1], "1 weights for 2 models"),
        ([1, float("nan")], "finite"),
        ([float("inf"), 1], "finite"),
        ([1, -1], "sum to 0"),
        ([0, 0], "sum to 0"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        merge([{"w": torch.ones(1)}, {"w": torch.ones(1)}], weights=weights)


def test_weights_that_cancel_up_to_rounding_are_refused() -> None:
    with pytest.raises(WeightspaceError, match="sum to 0"):
        merge([{"w": torch.ones(1)} for _ in range(3)], weights=[0.1, 0.2, -0.3])


def test_integer_tensors_that_differ_are_refused_by_name() -> None:
    a, b = (
        {"w": torch.ones(1), "steps": torch.tensor([1, 2, 3])},
        {"w": torch.ones(1), "steps": torch.arange(3)},
    )
    with pytest.raises(WeightspaceError, match=r"'steps' holds torch.int64 .* differ in 3 of 3 elements"):
        merge([a, b])


def test_batchnorm_counters_keep_the_largest() -> None:
    name = "norm.num_batches_tracked"
    merged = merge([{name: torch.tensor(40)}, {name: torch.tensor(90)}, {name: torch.tensor(7)}])
    assert merged[name].item() == 90
    assert merged[name].dtype == torch.int64


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightspaceError, match=r"'linaer'.*Did you mean 'linear'"):
        merge([{"w": torch.ones(1)}], "linaer")


@pytest.mark.parametrize("states", [[], {"w": torch.ones(1)}])
def test_something_else_than_a_list_of_models_is_refused(states) -> None:
    with pytest.raises(WeightspaceError, match="list of state dicts"):
        merge(states)


def test_a_base_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="takes no base"):
        merge([{"w": torch.ones(1)}], base={"w": torch.ones(1)})
