"""Weight norm is merged as the weight that it stands for."""

import pytest
import torch
from parametrized_networks import BOTH, WEIGHT_NORMS, bits, equal, fine_tunes, weight_of
from torch import Tensor

from weightspace.arithmetic.mean import mean
from weightspace.arithmetic.weight_norm import EffectiveWeight, Held, Slices, weight_and_gradient
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.buffers import find_parametrizations
from weightspace.errors import WeightspaceError
from weightspace.merging import interpolate


def pair(state: StateDict) -> tuple[str, str]:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    ((direction, norm),) = find_parametrizations(shapes).weight_norms.items()
    return norm.magnitude, direction


@pytest.mark.parametrize("kind", WEIGHT_NORMS)
def test_the_mean_is_that_of_the_weights(kind: str) -> None:
    states = fine_tunes(WEIGHT_NORMS[kind], 3)
    expected = torch.stack([weight_of(WEIGHT_NORMS[kind], state).double() for state in states]).mean(0)
    torch.testing.assert_close(weight_of(WEIGHT_NORMS[kind], mean(states)).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", WEIGHT_NORMS)
def test_copies_keep_their_pair_bit_for_bit(kind: str) -> None:
    (state,) = fine_tunes(WEIGHT_NORMS[kind], 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        copy = {name: tensor.to(dtype) for name, tensor in state.items()}
        assert equal(mean([dict(copy) for _ in range(3)]), copy)


@pytest.mark.parametrize("kind", WEIGHT_NORMS)
def test_the_line_is_that_between_the_weights_and_ends_in_the_models(kind: str) -> None:
    a, b = fine_tunes(WEIGHT_NORMS[kind], 2)
    ends = [weight_of(WEIGHT_NORMS[kind], state).double() for state in (a, b)]
    for position in (-0.5, 0.25, 1.5):
        expected = (1 - position) * ends[0] + position * ends[1]
        result = weight_of(WEIGHT_NORMS[kind], interpolate(a, b, position)).double()
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)
    assert equal(interpolate(a, b, 0), a)
    assert equal(interpolate(a, b, 1), b)


def test_a_merged_weight_is_written_as_torch_writes_one() -> None:
    result = mean(fine_tunes(WEIGHT_NORMS["convolution"], 3))
    magnitude, direction = (result[f"parametrizations.weight.original{number}"] for number in (0, 1))
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), magnitude.flatten())


def test_units_that_all_models_have_keep_their_pair_beside_others_that_change() -> None:
    a, b = ({name: tensor.clone() for name, tensor in state.items()} for state in fine_tunes(WEIGHT_NORMS["linear"], 2))
    for name in ("parametrizations.weight.original0", "parametrizations.weight.original1"):
        b[name][1] = a[name][1]
    result = mean([a, b])
    for name in ("parametrizations.weight.original0", "parametrizations.weight.original1"):
        assert bits(result[name][1]) == bits(a[name][1])
    assert float(result["parametrizations.weight.original1"][0].norm()) == pytest.approx(
        float(result["parametrizations.weight.original0"][0]), rel=1e-6
    )


def test_lengths_of_directions_mean_nothing() -> None:
    a, b = fine_tunes(WEIGHT_NORMS["linear"], 2)
    longer = {name: 8 * tensor if name.endswith("original1") else tensor for name, tensor in b.items()}
    for name, tensor in mean([a, b]).items():
        torch.testing.assert_close(mean([a, longer])[name], tensor)


@pytest.mark.parametrize("magnitudes", [(1.0, -1.0), (0.0, 0.0)])
def test_a_unit_that_comes_out_as_zero_has_a_direction_and_no_magnitude(magnitudes: tuple[float, float]) -> None:
    direction = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    states = [{"weight_g": torch.tensor([[size], [2.0]]), "weight_v": direction.clone()} for size in magnitudes]
    result = mean(states)
    assert result["weight_g"].tolist() == [[0.0], [2.0]]
    assert result["weight_v"].tolist() == direction.tolist()
    assert bool(torch._weight_norm(result["weight_v"], result["weight_g"], 0).isfinite().all())


def test_a_direction_of_length_zero_is_refused() -> None:
    state = {"weight_g": torch.ones(2, 1), "weight_v": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    with pytest.raises(WeightspaceError, match=r"'weight_v' is zero in 1 of its 2 slices, where weight norm gives NaN"):
        mean([state, state])


def test_pairs_tied_in_all_models_stay_tied_and_halves_are_refused() -> None:
    (state,) = fine_tunes(WEIGHT_NORMS["linear, old"], 1)
    twice = [
        {
            f"{layer}.{name}": tensor
            for layer in "ab"
            for name, tensor in {**state, "bias": state["bias"] * size}.items()
        }
        for size in (1, 2)
    ]
    for copy in twice:
        for name in ("weight_g", "weight_v"):
            copy[f"b.{name}"] = copy[f"a.{name}"]
    result = mean(twice)
    assert result["a.weight_v"] is result["b.weight_v"]
    assert result["a.weight_g"] is result["b.weight_g"]
    for copy in twice:
        copy["b.weight_g"] = copy["b.weight_g"] * 2
    with pytest.raises(WeightspaceError, match=r"'b.weight_v' shares its memory with 'a.weight_v', but the other"):
        mean(twice)


def test_complex_pairs_are_refused() -> None:
    state = {"weight_g": torch.ones(2, 1), "weight_v": torch.ones(2, 3, dtype=torch.complex64)}
    with pytest.raises(WeightspaceError, match="'weight_v' is complex"):
        mean([state, state])


def test_weight_norm_below_spectral_norm_is_merged_too() -> None:
    states = fine_tunes(BOTH, 2)
    result, expected = mean(states), None
    for state in states:
        weight = torch._weight_norm(
            state["parametrizations.weight.original1"].double(), state["parametrizations.weight.original0"].double(), 0
        )
        expected = weight / 2 if expected is None else expected + weight / 2
    torch.testing.assert_close(result["parametrizations.weight.original1"].double(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "magnitude"),
    [((3, 4), (3, 1)), ((3, 4), (1, 4)), ((3, 4), ()), ((3, 4), (1, 1)), ((2, 3, 4), (1, 3, 1)), ((5, 1), (5, 1))],
)
def test_slices_are_what_has_one_norm(shape: tuple[int, ...], magnitude: tuple[int, ...]) -> None:
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    axes = [axis for axis, size in enumerate(magnitude) if size == 1] if magnitude else None
    kept = direction.double().square()
    expected = kept.sum() if axes is None else kept.sum(axes) if axes else kept
    slices = Slices(shape, magnitude)
    flat = direction.reshape(-1)
    pieces = [(start, flat[start : start + 5]) for start in range(0, flat.numel(), 5)]
    torch.testing.assert_close(slices.norms(pieces), expected.sqrt().flatten())
    size = torch.rand(magnitude, generator=torch.Generator().manual_seed(1))
    weight = EffectiveWeight(Held(size), Held(direction), name="v")
    whole = size.double() * direction.double() / (expected.sqrt() if axes is None else expected.sqrt().view(magnitude))
    torch.testing.assert_close(weight.read(2, 5), whole.flatten()[2:5])


@pytest.mark.parametrize("kind", ["linear", "positional convolution", "one norm", "one input"])
def test_the_gradient_by_the_weight_is_that_of_autograd(kind: str) -> None:
    (state,) = fine_tunes(WEIGHT_NORMS[kind], 1)
    names = pair(state)
    magnitude, direction = (state[name].double().requires_grad_() for name in names)
    dims = [axis for axis, size in enumerate(magnitude.shape) if size == 1]

    def weight() -> Tensor:
        norms = direction.norm() if not magnitude.dim() else direction.square().sum(dims, keepdim=True).sqrt()
        return magnitude * direction / (norms if dims or not magnitude.dim() else direction.abs())

    free = weight().detach().requires_grad_()
    for values in (weight(), free):
        (values.sin() * torch.arange(values.numel()).view(values.shape)).sum().backward()
    result, gradient = weight_and_gradient(magnitude, direction)
    torch.testing.assert_close(result, free)
    torch.testing.assert_close(gradient, free.grad)
