"""Where float32 is too coarse for the one rounding to a narrow dtype, and where it is not and stays fast."""

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.merging import pieces
from weightspace.merging.rounding import needs_float64

NARROW = [torch.bfloat16, torch.float16]


def random(seed: int, dtype: torch.dtype, count: int = 40_000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", NARROW)
def test_results_half_way_between_two_numbers_are_those_of_float64(dtype: torch.dtype) -> None:
    a, b, c = (random(seed, dtype) for seed in range(3))
    merged = ws.merge([{"w": a}, {"w": b}, {"w": c}], weights=[0.8, 0.5, -0.3], parameters={"normalize": False})["w"]
    exact = 0.8 * a.double() + 0.5 * b.double() - 0.3 * c.double()
    assert (merged != exact.float().to(dtype)).sum() <= 4e-4 * len(a)
    coarse = (0.8 * a.float() + 0.5 * b.float() - 0.3 * c.float()).to(dtype)
    assert (coarse != exact.float().to(dtype)).sum() > 0.003 * len(a), "the case is too easy"


def test_models_that_cancel_their_base_leave_zeros() -> None:
    base = random(0, torch.bfloat16)
    pruned, tuned = torch.zeros_like(base), (base.float() + 1e-3 * random(1, torch.float32)).bfloat16()
    tuned[::3] = base[::3]
    merged = ws.merge([{"w": pruned}, {"w": tuned}], "ties", base={"w": base}, weights=[0.7, 0.4])["w"]
    assert merged[::3].abs().max() < 1e-15


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.6, 0.4], [0.7, 0.3]])
def test_fine_tunes_are_merged_in_float32(
    weights: list[float], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(pieces, "needs_float64", lambda *given: asked.append(needs_float64(*given)) or asked[-1])
    base = 0.02 * random(0, torch.float32, 300_000)
    tuned = [{"w": (base + 1e-3 * random(seed, torch.float32, 300_000)).to(dtype)} for seed in (1, 2)]
    for method in ("linear", "task_arithmetic", "ties"):
        ws.merge(tuned, method, base=None if method == "linear" else {"w": base.to(dtype)}, weights=weights)
    assert len(asked) >= 6
    assert not any(asked)
