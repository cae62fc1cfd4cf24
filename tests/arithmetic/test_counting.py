"""Tensors that no average is right for."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.mean import mean
from weightspace.errors import WeightspaceError

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32)


@pytest.mark.parametrize("name", ["num_batches_tracked", "model_ema.num_updates", "n_averaged", "state.3.step"])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.uint64, torch.float32, torch.float64, torch.bfloat16])
def test_of_counters_the_largest_is_kept(name: str, dtype: torch.dtype) -> None:
    for order in permutations((3, 96, 40)):
        result = mean([{name: torch.tensor(count).to(dtype)} for count in order])[name]
        assert (result.dtype, float(result)) == (dtype, 96.0)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.int32, torch.int64), torch.int64),
        ((torch.float32, torch.int32), torch.int32),
        ((torch.int64, torch.float64), torch.int64),
        ((torch.uint32, torch.int16), torch.int64),
        ((torch.uint8, torch.uint16), torch.uint16),
        ((torch.float16, torch.bfloat16), torch.float32),
    ],
)
def test_counters_of_other_dtypes_have_a_largest(dtypes: tuple[torch.dtype, ...], expected: torch.dtype) -> None:
    for counts in ((3, 9), (9, 3)):
        models = [{"step": torch.tensor(count).to(dtype)} for count, dtype in zip(counts, dtypes, strict=True)]
        assert mean(models)["step"].dtype == expected
        assert float(mean(models)["step"]) == 9


def test_a_step_that_is_no_whole_number_is_averaged() -> None:
    assert float(mean([{"step": torch.tensor(value)} for value in (0.5, 2.0)])["step"]) == 1.25


def test_steps_of_several_elements_are_weights() -> None:
    assert mean([{"step": torch.tensor([value, 1.0])} for value in (2.0, 4.0)])["step"].tolist() == [3.0, 1.0]


def indices(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"embeddings.position_ids": torch.arange(7).to(dtype)[None]}


@pytest.mark.parametrize("first", [*INTEGERS, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("second", [torch.int64, torch.int8, torch.float16])
def test_equal_indices_of_any_dtypes_are_kept(first: torch.dtype, second: torch.dtype) -> None:
    result = mean([indices(first), indices(second)])["embeddings.position_ids"]
    floats = first.is_floating_point and second.is_floating_point
    assert result.dtype.is_floating_point == floats
    assert result.tolist() == [list(range(7))]


@pytest.mark.parametrize(
    "dtypes", [(torch.int64, torch.int32), (torch.float32, torch.float32), (torch.int64, torch.float32)]
)
def test_indices_that_differ_are_refused(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    a, b = (indices(dtype)["embeddings.position_ids"] for dtype in dtypes)
    with pytest.raises(WeightspaceError, match=r"'position_ids' .* models 1 and 2 differ in 1 of 7"):
        unaveraged("position_ids", [a, b.index_fill(1, torch.tensor(3), 5)])


def test_a_float_between_two_integers_is_no_index() -> None:
    with pytest.raises(WeightspaceError, match="differ in 1 of 2"):
        unaveraged("position_ids", [torch.tensor([0, 1]), torch.tensor([0.0, 1.25])])


def test_masks_of_bools_and_floats_agree() -> None:
    result = mean([{"attn_mask": torch.tensor([True, False])}, {"attn_mask": torch.tensor([1.0, 0.0])}])
    assert result["attn_mask"].tolist() == [True, False]


def test_integers_that_no_dtype_holds_together_are_refused() -> None:
    with pytest.raises(
        WeightspaceError, match=r"No integer dtype can hold the values of torch\.uint64 and torch\.int64"
    ):
        mean([{"index": torch.tensor(1, dtype=torch.uint64)}, {"index": torch.tensor(1)}])
