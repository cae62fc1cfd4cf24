"""Consensus merging and TALL masks: planted elements of one task, of several and of none, and ties."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from samples import normals, same_bits
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.merging import merge

#: Of two tasks: an element of both, one of each alone, and one that the tasks pull apart.
FIRST, SECOND = [1.0, 3.0, 0.0, 1.0], [1.0, 0.0, 3.0, -1.0]


def merged(method: str, vectors: list[Any], dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    """Merge task vectors on a base of zeros."""
    models = [{"w": torch.as_tensor(vector, dtype=dtype)} for vector in vectors]
    weights = options.pop("weights", None)
    base = {"w": torch.zeros_like(models[0]["w"])}
    return merge(models, method, base=base, weights=weights, parameters=options)["w"]


def test_elements_of_a_single_task_are_reset_and_shared_ones_are_kept() -> None:
    assert merged("consensus", [FIRST, SECOND]).tolist() == [2, 0, 0, 0]
    assert merged("consensus", [FIRST, SECOND], min_tasks=1).tolist() == [2, 3, 3, 0]


def test_without_a_threshold_it_is_task_arithmetic() -> None:
    vectors = [normals(seed, (9, 7)) for seed in range(3)]
    options = {"weights": [0.3, 0.7, 1.1], "lambda": 0.4}
    assert same_bits(
        merged("consensus", vectors, min_tasks=0, **options), merged("task_arithmetic", vectors, **options)
    )
    trimmed = {**options, "density": 0.4}
    found = merged("consensus", vectors, min_tasks=0, inner="ties", **trimmed)
    assert same_bits(found, merged("ties", vectors, normalize=False, **trimmed))


@pytest.mark.parametrize("rebuild", [1, 2])
def test_a_tall_mask_gives_a_model_back_where_the_tasks_share_nothing(rebuild: int) -> None:
    vectors = [[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, -1.0]]
    assert merged("tall_mask", vectors, rebuild=rebuild).tolist() == vectors[rebuild - 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mask_lambda", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 1.2])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_sides_of_the_threshold_are_kept_whatever_their_rounding(
    dtype: torch.dtype, mask_lambda: float, weight: float
) -> None:
    """The rest is ``q`` and the own task vector ``p``, of λ = p/q; a common weight changes neither."""
    ratio = Fraction(mask_lambda).limit_denominator(100)
    unit = torch.arange(1, 9)
    own, rest = (ratio.numerator * unit).to(dtype), (ratio.denominator * unit).to(dtype)
    options = {"tall_mask_lambda": mask_lambda, "weights": [weight, weight], "lambda": 1 / weight}
    assert torch.equal(merged("tall_mask", [own, rest], dtype, **options), own + rest)
    below = torch.nextafter(own, torch.zeros_like(own))
    assert not merged("tall_mask", [below, rest], dtype, **options).any()


def test_the_masks_see_what_the_sum_is_trimmed_of() -> None:
    """The second element is trimmed from both sums, but both tasks still have it."""
    vectors = [[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 0.0, 3.0]]
    assert merged("consensus", vectors, density=0.5).tolist() == [8, 0, 0, 0]
    assert merged("tall_mask", vectors, density=0.5, rebuild=2).tolist() == [8, 0, 0, 3]


def test_thresholds_and_models_that_do_not_exist_are_refused() -> None:
    with pytest.raises(WeightspaceError, match=r"min_tasks is 3, but there are only 2 models.*up to 2"):
        merged("consensus", [FIRST, SECOND], min_tasks=3)
    with pytest.raises(WeightspaceError, match=r"rebuild is 3.*only 2 models.*from 1 to 2"):
        merged("tall_mask", [FIRST, SECOND], rebuild=3)
