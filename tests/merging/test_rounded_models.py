"""Differences of low rank, such as merged adapters, from models that were rounded when they were stored."""

from typing import Any

import pytest
import torch
from samples import normals
from torch import Tensor

from weightspace.merging import merge

#: Elements of the differences, relative to those of the base.
SIZES = (1e-1, 1e-3, 3e-4)


def low_rank(seed: int, shape: tuple[int, int], size: float) -> Tensor:
    rows, columns = shape
    left, right = normals(seed, (rows, 3), torch.float64), normals(seed + 50, (3, columns), torch.float64)
    return size * left @ right / 3**0.5


def difference(method: str, base: Tensor, deltas: list[Tensor], dtype: torch.dtype, **parameters: Any) -> Tensor:
    origin = {"w": base.to(dtype)}
    models = [{"w": (base + delta).to(dtype)} for delta in deltas]
    merged = merge(models, method, base=origin, parameters=parameters)["w"]
    return merged.double() - base


@pytest.mark.parametrize("shape", [(48, 48), (24, 72), (72, 24)], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("tsv_m", {}),
        ("iso_c", {}),
        ("iso_cts", {}),
        ("wudi", {}),
        ("optmerge", {"steps": 0}),
        ("optmerge", {"steps": 0, "tuning": "lora"}),
        ("subspace_boosting", {"beta": 0.3}),
        ("svc", {}),
        ("knots", {}),
        ("core_space", {}),
    ],
    ids=str,
)
def test_the_rounding_of_models_is_no_direction(
    method: str, parameters: dict[str, Any], size: float, shape: tuple[int, int]
) -> None:
    base = normals(9, shape, torch.float64).float().double()
    deltas = [low_rank(seed, shape, size) for seed in range(3)]
    if method in ("svc", "subspace_boosting"):
        deltas = [0.4 * sum(deltas, torch.zeros(shape)), *(deltas if method == "svc" else ())]
    exact = difference(method, base, deltas, torch.float64, **parameters)
    stored = difference(method, base, deltas, torch.float32, **parameters)
    noise = torch.finfo(torch.float32).eps / size
    assert float((stored - exact).norm() / exact.norm()) < 10 * noise
