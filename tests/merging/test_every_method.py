"""Properties that every row of the table of merging methods has."""

import pytest
import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import METHODS, merge

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_method = pytest.mark.parametrize("method", METHODS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(7, 5, generator=generator).to(dtype),
        "layer.bias": torch.randn(7, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
        "nothing": torch.empty(0, 3, dtype=dtype),
        "index": torch.arange(4),
        "mask": torch.tensor([True, False]),
    }


def bits(tensor: Tensor) -> list[int]:
    return list(tensor.detach().contiguous().reshape(-1).view(torch.uint8)) if tensor.numel() else []


def assert_same_bits(found: StateDict, expected: StateDict) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor), name


@every_method
@every_dtype
@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_copies_merge_to_the_copy_bit_for_bit(method: str, dtype: torch.dtype, copies: int) -> None:
    state = random_state(0, dtype)
    state["layer.bias"][0] = -0.0
    clones = [{name: tensor.clone() for name, tensor in state.items()} for _ in range(copies)]
    assert_same_bits(merge(clones, method, weights=[0.1 + index for index in range(copies)]), state)


@every_method
def test_the_inputs_are_unchanged_and_the_result_shares_no_memory_with_them(method: str) -> None:
    states = [random_state(seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    for tensor in merge(states, method).values():
        tensor.zero_()
    for state, old in zip(states, before, strict=True):
        assert_same_bits(state, old)


@every_method
@every_dtype
def test_the_dtype_is_kept(method: str, dtype: torch.dtype) -> None:
    merged = merge([random_state(0, dtype), random_state(1, dtype)], method)
    assert {merged[name].dtype for name in ("layer.weight", "scale", "nothing")} == {dtype}


@every_method
def test_differing_float_dtypes_are_promoted(method: str) -> None:
    merged = merge([random_state(0, torch.bfloat16), random_state(1, torch.float16)], method)
    assert merged["layer.weight"].dtype == torch.float32


@every_method
def test_the_order_of_the_names_is_irrelevant(method: str) -> None:
    a, b = random_state(0), random_state(1)
    reordered = dict(reversed(list(b.items())))
    assert_same_bits(merge([a, reordered], method), merge([a, b], method))


@every_method
def test_tensors_tied_in_every_model_stay_tied_and_others_do_not(method: str) -> None:
    def language_model(seed: int, tied: bool) -> StateDict:
        embedding = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))
        return {"embedding": embedding, "head": embedding if tied else embedding + 1}

    both = merge([language_model(0, True), language_model(1, True)], method)
    assert both["head"] is both["embedding"]
    one = merge([language_model(0, True), language_model(1, False)], method)
    assert not torch.equal(one["head"], one["embedding"])


@every_method
def test_parameters_that_require_gradients_merge_to_plain_tensors(method: str) -> None:
    states = [{"weight": torch.nn.Parameter(torch.ones(2))}, {"weight": torch.nn.Parameter(torch.zeros(2))}]
    assert not merge(states, method)["weight"].requires_grad


@every_method
def test_an_unknown_parameter_is_refused_with_the_known_ones(method: str) -> None:
    with pytest.raises(WeightspaceError, match="Unknown parameter of method"):
        merge([random_state(0)], method, parameters={"normalise_it": True})


@every_method
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "kind"])
def test_models_that_do_not_fit_together_are_refused(method: str, damage: str) -> None:
    a, b = random_state(0), random_state(1)
    if damage == "missing":
        del b["scale"]
    if damage == "extra":
        b["more"] = torch.ones(1)
    if damage == "shape":
        b["layer.bias"] = torch.ones(6)
    if damage == "kind":
        b["layer.bias"] = torch.ones(7, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="model 1 and model 2"):
        merge([a, b], method)
