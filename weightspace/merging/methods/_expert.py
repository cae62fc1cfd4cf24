"""An expert of a mixture: a dense model's weight plus noise, times a factor.

Every chunk of every tensor has a generator of its own, so that the noise is the same on any number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import ratios
from weightspace.merging.methods._linear_combination import LinearFormula
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack


def expert(stack: TensorStack, weights: Sequence[float], *, noise_scale: float, seed: int) -> Formula:
    """Return the formula ``weight (x + noise_scale ε)`` with standard normal ε."""
    (factor,) = weights
    if not noise_scale:
        return LinearFormula(ratios((factor,)))

    def formula(chunk: Chunk) -> Tensor:
        (values,) = chunk.tensors
        noise = _normal(seed, stack.name, chunk.start, values.numel()).view(values.shape)
        return values.add_(noise.to(values.dtype), alpha=noise_scale).mul_(factor)

    return formula


def _normal(seed: int, name: str, start: int, count: int) -> Tensor:
    """Return standard normal numbers that depend on the seed, the tensor and the chunk alone."""
    key = json.dumps([seed, name, start]).encode()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(hashlib.sha256(key).digest(), "little")))
    return torch.from_numpy(generator.standard_normal(count))
