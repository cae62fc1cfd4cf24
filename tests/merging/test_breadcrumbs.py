import pytest
import torch
from large import LARGE, assert_agrees, large

from weightspace.merging import merge


def crumbs(delta: list[float], **parameters: float) -> list[float]:
    model, base = {"w": torch.tensor(delta)}, {"w": torch.zeros(len(delta))}
    return merge([model], "breadcrumbs", base=base, parameters=parameters)["w"].tolist()


def test_the_largest_and_the_smallest_differences_go() -> None:
    assert crumbs([1.0, -5.0, 3.0, -2.0, 4.0], density=0.6, gamma=0.2) == [0, 0, 3, -2, 4]
    assert crumbs([1.0, -5.0, 3.0, -2.0, 4.0], density=0.4, gamma=0.4) == [0, 0, 3, -2, 0]


def test_the_density_remains_even_where_gamma_would_take_more() -> None:
    assert crumbs([1.0, -5.0, 3.0, -2.0, 4.0], density=0.8, gamma=0.9) == [1, 0, 3, -2, 4]
    assert crumbs([1.0, -5.0, 3.0, -2.0, 4.0], density=1, gamma=0.9) == [1, -5, 3, -2, 4]


def test_density_0_leaves_the_base() -> None:
    assert crumbs([1.0, -5.0, 3.0], density=0) == [0, 0, 0]


def test_of_equal_differences_the_first_ones_count_as_larger() -> None:
    assert crumbs([1.0, 1.0, -1.0, 1.0], density=0.5, gamma=0.25) == [0, 1, -1, 0]


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("options", [{}, {"rescale": True, "lambda": 0.5}, {"normalize": True}], ids=str)
def test_a_tensor_of_several_chunks_with_many_equal_differences_agrees_with_the_oracle(
    method: str, options: dict
) -> None:
    models, base = [large(seed) for seed in (1, 2)], large(0)
    # Of weights such as .6 and .4 the rounding would decide where votes cancel: these are exact.
    assert_agrees(method, models, base, [0.75, 0.25], density=[0.3, 0.7], gamma=[0.1, 0.02], **options)


def test_the_density_is_exact_for_equal_differences_in_several_chunks() -> None:
    base, ones = {"w": torch.zeros(LARGE)}, {"w": torch.ones(LARGE)}
    kept = merge([ones], "breadcrumbs", base=base, parameters={"density": 0.6, "gamma": 0.25})["w"].bool()
    first, count = int(0.25 * LARGE), int(0.6 * LARGE)
    assert kept.sum() == count
    assert kept[first : first + count].all()
