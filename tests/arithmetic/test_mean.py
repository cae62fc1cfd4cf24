"""The plain mean of networks."""

import pytest
import torch

from weightspace.arithmetic.mean import mean
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging import merge


def state(seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 4, generator=generator).to(dtype)
    return {
        "embed": weight,
        "head": weight,
        "norm.num_batches_tracked": torch.tensor(seed),
        "index": torch.arange(3),
    }


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_copies_have_the_copy_as_their_mean_bit_for_bit(count: int, dtype: torch.dtype) -> None:
    found = mean([state(0, dtype)] * count)
    for name, tensor in state(0, dtype).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_it_is_the_merge_of_equal_weights() -> None:
    models = [state(seed) for seed in range(3)]
    found, expected = mean(models), merge(models)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
    assert found["embed"] is found["head"]
    assert int(found["norm.num_batches_tracked"]) == 2


def test_integers_that_differ_have_no_mean() -> None:
    with pytest.raises(WeightspaceError, match=r"'index' holds torch\.int64 values, which cannot be averaged"):
        mean([state(0), {**state(1), "index": torch.arange(1, 4)}])
