import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import interpolate, merge


def pair(dtype: torch.dtype = torch.float32) -> tuple[StateDict, StateDict]:
    generator = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(50, generator=generator).to(dtype), "n": torch.tensor(3)} for _ in range(2))
    return a, b


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_ends_are_the_models_exactly(dtype: torch.dtype) -> None:
    a, b = pair(dtype)
    assert torch.equal(interpolate(a, b, 0)["w"], a["w"])
    assert torch.equal(interpolate(a, b, 1)["w"], b["w"])


def test_the_ends_are_exact_even_beside_nan_and_unequal_integers() -> None:
    a = {"w": torch.tensor([1.0]), "n": torch.tensor([1, 2])}
    b = {"w": torch.tensor([float("nan")]), "n": torch.tensor([3, 4])}
    assert interpolate(a, b, 0)["w"].item() == 1.0
    assert interpolate(a, b, 1)["n"].tolist() == [3, 4]
    with pytest.raises(WeightspaceError, match="'n' holds"):
        interpolate(a, b, 0.5)


@given(steps=st.integers(1, 2**52 - 1))
@example(steps=2**51)
def test_the_line_is_the_merge_with_the_weights_of_the_position(steps: int) -> None:
    """Both round the exact value once, so they agree wherever the weight 1 − λ is itself a float."""
    a, b = pair()
    position = steps / 2**52
    merged = merge([a, b], weights=[1 - position, position])
    assert torch.equal(interpolate(a, b, position)["w"], merged["w"])


@given(position=st.floats(0, 1))
def test_the_reversed_line_is_the_same_line(position: float) -> None:
    a, b = pair(torch.float64)
    assert torch.allclose(interpolate(a, b, position)["w"], interpolate(b, a, 1 - position)["w"], rtol=1e-14)


@given(position=st.floats(-100, 100))
def test_a_model_and_itself_have_that_model_everywhere(position: float) -> None:
    a, _ = pair()
    assert torch.equal(interpolate(a, a, position)["w"], a["w"])


def test_the_line_extends_beyond_its_endpoints() -> None:
    a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}
    assert interpolate(a, b, -2)["w"].item() == -1.0
    assert interpolate(a, b, 3.5)["w"].item() == 4.5
    assert interpolate(a, b, 1e20)["w"].item() == pytest.approx(1e20)


@pytest.mark.parametrize("position", [float("nan"), float("inf")])
def test_a_position_that_is_no_place_is_refused(position: float) -> None:
    with pytest.raises(WeightspaceError, match="finite"):
        interpolate(*pair(), position)


def test_models_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(CheckpointError, match="'w'"):
        interpolate({"w": torch.ones(2)}, {"w": torch.ones(3)}, 0.5)
