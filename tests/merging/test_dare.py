import math
from typing import Any

import pytest
import torch
from large import LARGE, assert_agrees, large
from samples import normals
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging import merge
from weightspace.merging.in_memory import InMemory
from weightspace.merging.methods._tensor_stack import TensorStack
from weightspace.merging.methods.dare import dare_linear


def dare(delta: Tensor, *, name: str = "w", **parameters: Any) -> Tensor:
    """Return what is left of a difference."""
    return merge([{name: delta}], "dare_linear", base={name: torch.zeros_like(delta)}, parameters=parameters)[name]


def mask(count: int = LARGE, name: str = "w", density: float = 0.3, seed: int = 0) -> Tensor:
    return dare(torch.ones(count), name=name, density=density, seed=seed, rescale="none") != 0


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_mask_keeps_its_density(density: float, seed: int) -> None:
    share = mask(density=density, seed=seed).double().mean().item()
    assert abs(share - density) < 5 * math.sqrt(density * (1 - density) / LARGE)


def test_density_0_keeps_nothing_and_density_1_everything_unscaled() -> None:
    delta = normals(0, (1000,))
    for rescale in ("l1", "density", "none"):
        assert not dare(delta, density=0, rescale=rescale).any()
        assert torch.equal(dare(delta, density=1, rescale=rescale), delta)


def test_masks_of_other_tensors_models_seeds_and_chunks_are_independent() -> None:
    """The correlation of two independent masks of n elements is 0 ± 1/√n."""
    first = mask()
    others = [mask(name="v"), mask(name="w.0"), mask(seed=1), first.roll(1), first.roll(2**17)]
    twice = merge(
        [{"w": torch.ones(LARGE)}] * 2,
        "dare_linear",
        base={"w": torch.zeros(LARGE)},
        weights=[1, 2],
        parameters={"density": 0.3, "rescale": "none"},
    )["w"]
    others += [twice >= 2]
    assert torch.equal(twice.remainder(2) != 0, first)
    for other in others:
        assert abs(correlation(first, other)) < 5 / math.sqrt(LARGE)


def test_masks_do_not_depend_on_values_dtypes_or_other_tensors() -> None:
    kept = mask(1000)
    delta = normals(0, (10, 100))
    assert torch.equal(dare(delta, density=0.3) != 0, kept.view(10, 100))
    assert torch.equal(dare(delta.bfloat16(), density=0.3) != 0, kept.view(10, 100))
    more = {"a": torch.ones(3), "w": torch.ones(1000), "z": torch.ones(3)}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in more.items()}
    for names in (["a", "w", "z"], ["z", "w", "a"]):
        state: StateDict = {name: more[name] for name in names}
        merged = merge([state], "dare_linear", base=nothing, parameters={"density": 0.3})
        assert torch.equal(merged["w"] != 0, kept)


def test_a_model_has_the_same_mask_at_any_place_among_the_others() -> None:
    deltas = {
        "first": torch.full((1000,), 1.0),
        "second": torch.full((1000,), 10.0),
        "third": torch.full((1000,), 100.0),
    }

    def merged(*labels: str) -> Tensor:
        flats = [InMemory(deltas[label]) for label in labels]
        stack = TensorStack("w", flats, InMemory(torch.zeros(1000)), labels)
        options = {"lambda_": 1.0, "normalize": False, "rescale": "none", "seed": 0}
        formula = dare_linear(stack, [1.0] * len(labels), density=[0.5] * len(labels), **options)
        return torch.cat([formula(chunk) for chunk in stack.chunks()])

    expected = merged("first", "second", "third")
    assert torch.equal(merged("third", "first", "second"), expected)
    assert torch.equal(merged("second", "third"), expected - expected.remainder(10))


def test_a_higher_density_keeps_what_a_lower_one_keeps() -> None:
    low, high = mask(density=0.2), mask(density=0.6)
    assert (low & ~high).sum() == 0


def test_dividing_by_the_density_is_right_on_average_over_all_masks() -> None:
    """Elements of size 1 that are kept with probability p and divided by it deviate by √((1−p)/p), their mean less."""
    delta, density, seeds = normals(0, (2000,)).sign(), 0.3, 200
    total = sum(dare(delta, density=density, seed=seed, rescale="density").double() for seed in range(seeds))
    deviation = math.sqrt((1 - density) / density / seeds)
    z = (total / seeds - delta) / deviation
    assert z.abs().max() < 5.5  # 2000 elements: 5 σ for one is expected once in 900 runs
    assert abs(z.mean()) < 5 / math.sqrt(2000)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / 2000)


@pytest.mark.parametrize("rescale", ["l1", True, "true"])
def test_the_l1_norm_of_the_difference_is_restored(rescale: Any) -> None:
    delta = normals(0, (LARGE,))
    found = dare(delta, density=0.2, rescale=rescale)
    assert found.abs().double().sum().item() == pytest.approx(delta.abs().double().sum().item(), rel=1e-6)
    factors = (found / delta)[found != 0]
    assert factors.max() - factors.min() < 1e-5


@pytest.mark.parametrize("rescale", ["none", False])
def test_without_rescaling_what_is_kept_is_as_it_was(rescale: Any) -> None:
    delta = normals(0, (1000,))
    found = dare(delta, density=0.5, rescale=rescale)
    assert torch.equal(found, torch.where(found != 0, delta, 0))


def test_where_nothing_is_kept_nothing_is_scaled() -> None:
    assert dare(torch.ones(1), density=1e-9).item() == 0
    assert dare(torch.zeros(5), density=0.5).tolist() == [0] * 5


def test_another_rescaling_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="'rescale' 'l2'; expected one of l1, density, none"):
        dare(torch.ones(3), density=0.5, rescale="l2")


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_at_density_1_several_chunks_agree_with_the_oracle(method: str) -> None:
    assert_agrees(method, [large(seed) for seed in (1, 2)], large(0), [0.5, -0.25])
