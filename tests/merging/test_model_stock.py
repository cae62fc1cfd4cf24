import pytest
import torch
from large import assert_agrees, large
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge


def planted(cosine: float, count: int, size: int = 4000, seed: int = 0) -> list[Tensor]:
    """Return unit vectors with that cosine between any two of them."""
    basis = torch.linalg.qr(normals(seed, (size, count + 1), torch.float64)).Q
    return [cosine**0.5 * basis[:, 0] + (1 - cosine) ** 0.5 * basis[:, index + 1] for index in range(count)]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("cosine", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1.0, 1e25])
def test_a_planted_angle_gives_its_ratio_at_any_scale(cosine: float, count: int, scale: float) -> None:
    """Also where the squares of float32 have no room: at rms 1e-5 a constant in a denominator gave .587 for .890."""
    deltas = [(delta * scale).float() for delta in planted(cosine, count)]
    merged = merge([{"w": delta} for delta in deltas], "model_stock", base={"w": torch.zeros(4000)})["w"]
    ratio = count * cosine / (1 + (count - 1) * cosine)
    expected = ratio * sum(delta.double() for delta in deltas) / count
    assert error(merged / scale, expected / scale) < 1e-6


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("shape", [(3 * 2**17 + 5,), (1111, 355), (3, 2**17 + 1), (70, 11, 23, 23)])
def test_a_tensor_of_several_chunks_agrees_with_the_oracle(
    filter_wise: bool, models: int, shape: tuple[int, ...]
) -> None:
    common = large(9, shape)
    tensors = [common + large(seed, shape) for seed in range(1, models + 1)]
    assert_agrees("model_stock", tensors, large(0, shape) * 0, filter_wise=filter_wise)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_differences_that_point_apart_leave_the_base(filter_wise: bool) -> None:
    delta, base = normals(1, (5, 6)), normals(0, (5, 6))
    models = [{"w": delta}, {"w": -delta}]
    nothing = torch.zeros(5, 6)
    assert not merge(models, "model_stock", base={"w": nothing}, parameters={"filter_wise": filter_wise})["w"].any()
    same = [{"w": base.clone()}, {"w": base.clone()}]
    assert torch.equal(merge(same, "model_stock", base={"w": base})["w"], base)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_scalars_of_opposite_signs_leave_the_base(filter_wise: bool) -> None:
    """Their cosine is -1 exactly, and not by the rounding of float32 away from it, which gave 5e7."""
    x, y = normals(1, (300, 1)).abs(), -normals(2, (300, 1)).abs()
    base = {"w": torch.zeros(300, 1), **{f"s{i}": torch.tensor(0.0) for i in range(100)}}
    models = [{"w": w, **{f"s{i}": w[i, 0] for i in range(100)}} for w in (x, y)]
    merged = merge(models, "model_stock", base=base, parameters={"filter_wise": filter_wise})
    assert not any(merged[f"s{i}"].any() for i in range(100))
    if filter_wise:
        assert not merged["w"].any()


def test_differences_in_one_element_alone_have_an_angle_of_0_or_180_degrees() -> None:
    base = torch.ones(50)
    up, down, more = base.clone(), base.clone(), base.clone()
    up[7], down[7], more[7] = 1.3, 0.9, 1.1
    assert torch.equal(merge([{"w": up}, {"w": down}], "model_stock", base={"w": base})["w"], base)
    merged = merge([{"w": up}, {"w": more}], "model_stock", base={"w": base})["w"]
    assert merged[7].item() == pytest.approx(1.2)


def test_a_model_that_did_not_move_counts_as_orthogonal() -> None:
    a, b = planted(0.5, 2)
    merged = merge([{"w": a}, {"w": b}, {"w": torch.zeros(4000)}], "model_stock", base={"w": torch.zeros(4000)})["w"]
    cosine = 0.5 / 3
    ratio = 3 * cosine / (1 + 2 * cosine)
    assert error(merged, ratio * (a + b) / 3) < 1e-6


def test_three_models_whose_differences_cancel_give_the_base() -> None:
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(1000, generator=generator)
    signs = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]  # at 180° together, no two of them
    models = [{"w": torch.cat([sign * r for sign in several])} for several in signs]
    base = {"w": torch.zeros(3000)}
    assert torch.equal(merge(models, "model_stock", base=base)["w"], base["w"])
