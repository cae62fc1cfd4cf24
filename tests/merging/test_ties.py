import numpy as np
import oracles
import pytest
import torch
from large import LARGE, assert_agrees, large
from samples import assert_same_bits, copied, error, floats, normals, random_state, same_bits
from torch import Tensor

from weightspace.merging import merge


def ties(models: list[list[float]], weights: list[float] | None = None, **parameters: object) -> list[float]:
    states = [{"w": torch.tensor(model, dtype=torch.float32)} for model in models]
    base = {"w": torch.zeros(len(models[0]))}
    return merge(states, "ties", base=base, weights=weights, parameters=parameters)["w"].tolist()


def test_those_that_agree_with_the_elected_sign_are_averaged() -> None:
    assert ties([[3, -1, 2, 0], [-1, -1, 4, 5]]) == [3, -1, 3, 5]
    assert ties([[3, -1, 2, 0], [-1, -1, 4, 5]], normalize=False) == [3, -2, 6, 5]
    assert ties([[3, -1, 2, 0], [-1, -1, 4, 5]], [1, 3]) == [3, -1, 3.5, 5]


def test_where_the_signs_balance_plus_wins() -> None:
    assert ties([[1, -2], [-1, 2]]) == [1, 2]


def test_a_difference_of_zero_agrees_with_neither_sign() -> None:
    assert ties([[0, 0, 0], [2, -2, 0]]) == [2, -2, 0]
    assert ties([[-0.0], [2]], [5, 1]) == [2]


def test_a_negative_weight_votes_for_the_opposite_and_divides_as_it_is() -> None:
    assert ties([[2.0]], [-1]) == [2]  # s = -2, elected -, -2 / -1
    assert ties([[2.0], [3.0]], [-1, 1]) == [3]
    assert ties([[2.0], [3.0]], [-1, 1], normalize=False) == [3]


def test_weights_of_those_that_agree_may_cancel_and_then_divide_by_one() -> None:
    assert ties([[3.0], [-1.0]], [1, -1]) == [4]


@pytest.mark.parametrize(("density", "kept"), [(0, 1), (0.09, 1), (0.1, 1), (0.35, 3), (0.99, 9), (1, 10)])
def test_the_density_rounds_down_but_keeps_one(density: float, kept: int) -> None:
    delta = [float(value) for value in (3, 9, 1, 7, 5, 10, 2, 8, 4, 6)]
    assert ties([delta], density=density) == [value if value > 10 - kept else 0 for value in delta]


def test_of_equal_differences_the_first_ones_are_kept() -> None:
    assert ties([[1, -1, 2, 1, -1, 1]], density=0.5) == [1, -1, 2, 0, 0, 0]
    assert ties([[0, 0, 0]], density=0.3) == [0, 0, 0]


def test_rescaling_restores_the_l1_norm_of_the_difference() -> None:
    assert ties([[1, 2, -3, 4]], density=0.5, rescale=True) == pytest.approx([0, 0, -3 * 10 / 7, 4 * 10 / 7])
    assert ties([[0, 0, 0, 0]], density=0.5, rescale=True) == [0, 0, 0, 0]


@pytest.mark.parametrize("density", [0.2, [0.01, 0.5, 0.999], 0.0])
def test_a_tensor_of_several_chunks_with_many_equal_differences_agrees_with_the_oracle(density: object) -> None:
    models, base = [large(seed) for seed in (1, 2, 3)], large(0)
    assert_agrees("ties", models, base, [0.5, 1.0, -0.25], density=density)


@pytest.mark.parametrize("parameters", [{"rescale": True}, {"normalize": False, "lambda": 0.3}], ids=str)
def test_options_hold_over_several_chunks(parameters: dict) -> None:
    models, base = [large(seed) for seed in (1, 2)], large(0)
    assert_agrees("ties", models, base, [0.5, 0.25], density=0.4, **parameters)


def test_a_constant_difference_is_kept_up_to_the_right_position_in_a_later_chunk() -> None:
    base = torch.zeros(LARGE)
    merged = merge([{"w": torch.ones(LARGE)}], "ties", base={"w": base}, parameters={"density": 0.7})["w"]
    count = int(0.7 * LARGE)
    assert merged[:count].eq(1).all()
    assert merged[count:].eq(0).all()


def joined(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([floats(state)[name].reshape(-1) for name in sorted(floats(state))])


@pytest.mark.parametrize("density", [0.3, [0.1, 0.5, 0.9], 0.0, 1.0], ids=str)
@pytest.mark.parametrize("rounded", [False, True])
def test_over_the_whole_model_it_trims_the_sorted_tensors_side_by_side(density: object, rounded: bool) -> None:
    """With differences rounded to whole numbers, most of those at the threshold are equal."""
    base, *models = (random_state(seed) for seed in range(4))
    if rounded:
        base, *models = ({name: tensor.round() for name, tensor in floats(state).items()} for state in (base, *models))
    parameters = {"density": density, "rescale": False}
    merged = merge(models, "ties", base=base, parameters={**parameters, "scope": "model"})
    shares = density if isinstance(density, list) else [density] * 3
    arrays = [joined(model).double().numpy() - joined(base).double().numpy() for model in models]
    expected = oracles.ties(arrays, np.zeros_like(arrays[0]), [1, 1, 1], shares) + joined(base).double().numpy()
    assert error(joined(merged), torch.as_tensor(expected)) < 1e-6
    same = merge([{"w": joined(m)} for m in models], "ties", base={"w": joined(base)}, parameters=parameters)["w"]
    assert same_bits(joined(merged), same)


def test_over_the_whole_model_the_order_of_the_names_is_irrelevant() -> None:
    models, base = [random_state(1), random_state(2)], random_state(0)
    parameters = {"density": 0.3, "scope": "model"}
    expected = merge(models, "ties", base=base, parameters=parameters)
    turned = [dict(reversed(list(model.items()))) for model in models]
    found = merge(turned, "ties", base=base, parameters=parameters)
    assert_same_bits({name: found[name] for name in expected}, expected)


def test_over_the_whole_model_a_large_tensor_outweighs_small_ones() -> None:
    """Trimmed tensor by tensor half of ``a`` remains; over the model none: ``b`` has the large differences."""
    base = {"a": torch.zeros(100), "b": torch.zeros(LARGE)}
    model = {"a": normals(1, (100,)).abs(), "b": 10 + normals(2, (LARGE,)).abs()}
    local = merge([model], "ties", base=base, parameters={"density": 0.5})
    whole = merge([copied(model)], "ties", base=base, parameters={"density": 0.5, "scope": "model"})
    assert local["a"].count_nonzero() == 50
    assert whole["a"].count_nonzero() == 0
    assert whole["b"].count_nonzero() == (LARGE + 100) // 2
