import pytest
import torch
from large import assert_agrees, large
from samples import normals, same_bits

from weightspace.merging import merge


def sce(models: list[list[float]], **parameters: float) -> list[float]:
    states = [{"w": torch.tensor(model)} for model in models]
    return merge(states, "sce", base={"w": torch.zeros(len(models[0]))}, parameters=parameters)["w"].tolist()


def test_models_weigh_as_much_as_the_mean_squares_of_their_differences() -> None:
    """1 and 4 share the first element at 1 : 4; in the others only one of the two changed anything."""
    assert sce([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]) == pytest.approx([(1 + 8) / 5, 0, 0])
    assert sce([[1.0, 3.0], [0.0, -1.0]]) == pytest.approx([1, 3])


def test_the_sign_is_elected_without_weights() -> None:
    """The large model would outvote the two small ones by its weight, were it asked."""
    assert sce([[1.0, 0.0], [1.0, 0.0], [-1.5, 9.0]]) == pytest.approx([1, 9])


def test_where_the_signs_balance_plus_wins() -> None:
    assert sce([[1.0], [-1.0]]) == [1]


def test_only_the_share_of_the_highest_variances_is_kept_and_the_first_of_equal_ones() -> None:
    assert sce([[1.0, 5.0, 2.0, 3.0], [-1.0, 0.0, 2.0, 0.0]], select_topk=0.34) == [0, 5, 0, 0]
    assert sce([[3.0, 3.0, 3.0], [0.0, 0.0, 0.0]], select_topk=0.67) == [3, 3, 0]
    assert sce([[1.0, 2.0, 4.0], [2.0, 4.0, 1.0], [4.0, 1.0, 2.0]], select_topk=0.4)[1:] == [0, 0]
    assert sce([[1.0, 2.0], [0.0, 1.0]], select_topk=0) == [0, 0]


def test_elements_on_which_all_models_agree_count_for_nothing_in_the_share() -> None:
    assert sce([[7.0, 7.0, 7.0, 1.0, 2.0], [7.0, 7.0, 7.0, 0.0, 0.0]], select_topk=0.5) == [0, 0, 0, 0, 2]


@pytest.mark.parametrize("share", [1.0, 0.3, 0.9])
@pytest.mark.parametrize("models", [2, 3])
def test_a_tensor_of_several_chunks_with_many_equal_variances_agrees_with_the_oracle(share: float, models: int) -> None:
    assert_agrees("sce", [large(seed) for seed in range(1, models + 1)], large(0), select_topk=share)


@pytest.mark.parametrize("power", [-60, -13, 60])
def test_small_differences_weigh_as_large_ones_do(power: int) -> None:
    """Differences of rms 1e-4 and less: a constant in the denominator would make the weights equal."""
    base = {"w": torch.zeros(1000)}
    models = [{"w": normals(1, (1000,))}, {"w": 3 * normals(2, (1000,))}]
    expected = merge(models, "sce", base=base, parameters={"select_topk": 0.5})["w"] * 2.0**power
    scaled = [{"w": model["w"] * 2.0**power} for model in models]
    assert same_bits(merge(scaled, "sce", base=base, parameters={"select_topk": 0.5})["w"], expected)
