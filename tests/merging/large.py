"""Tensors of several chunks for the tests of single methods, and the oracle's answer for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import named_oracles
import numpy as np
import torch
from samples import error, normals
from torch import Tensor

from weightspace.merging import merge
from weightspace.merging.methods._registry import CHUNK

#: Three chunks and five elements more.
LARGE = 3 * CHUNK + 5


def large(seed: int, shape: Sequence[int] = (LARGE,), scale: float = 1.0) -> Tensor:
    """Return normal numbers with the few bits of bfloat16: many are equal, and their differences are exact."""
    return (normals(seed, shape) * scale).bfloat16().float()


def assert_agrees(
    method: str,
    models: Sequence[Tensor],
    base: Tensor | None = None,
    weights: Sequence[float] | None = None,
    tolerance: float = 1e-6,
    **parameters: Any,
) -> Tensor:
    """Check a merge against the oracle and return it."""
    options: Mapping[str, Any] = {name.rstrip("_"): value for name, value in parameters.items()}
    found = merge(
        [{"w": model} for model in models],
        method,
        base=None if base is None else {"w": base},
        weights=weights,
        parameters=options,
    )["w"]
    expected = named_oracles.merged(
        method,
        [model.double().numpy() for model in models],
        None if base is None else base.double().numpy(),
        weights or [1.0] * len(models),
        options,
        masks=[np.ones(model.shape, bool) for model in models],  # what is random keeps all here
    )
    assert error(found, torch.as_tensor(expected)) < tolerance
    return found
