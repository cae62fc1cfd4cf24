"""Tensors that are hard to merge exactly: of mixed exponents, of terms that cancel, half-way between two numbers."""

from __future__ import annotations

import torch
from torch import Tensor

#: Narrow exponents where the dtype has no others.
_RANGE = {torch.float16: 6, torch.float8_e4m3fn: 2, torch.float8_e5m2: 6}


def tensors(kind: str, count: int, dtype: torch.dtype, size: int, seed: int = 0) -> list[Tensor]:
    """Return tensors of a kind; the last one may serve as a base."""
    generator = torch.Generator().manual_seed(seed)

    def normals() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    if kind == "fine_tunes":
        base = 0.02 * normals()
        return [*((base + 1e-3 * normals()).to(dtype) for _ in range(count - 1)), base.to(dtype)]
    if kind == "mixed_exponents":
        width = _RANGE.get(dtype, 40)
        scales = (torch.randint(-width, width + 1, (size,), generator=generator) for _ in range(count))
        return [(normals() * torch.exp2(scale.double())).to(dtype) for scale in scales]
    if kind == "cancelling":
        *first, _ = [normals().to(dtype) for _ in range(count)]
        rest = sum(one.double() for one in first) * (1 + 2.0**-5 * normals())
        return [*first, (-rest).to(dtype)]
    return [normals().to(dtype) for _ in range(count)]


KINDS = ("random", "fine_tunes", "mixed_exponents", "cancelling")
