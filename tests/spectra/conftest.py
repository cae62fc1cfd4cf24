"""Random rotations, which have no singular vectors of their own to speak of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def orthogonal() -> Callable[[int, int], Tensor]:
    """``orthogonal(size, seed)``: a random orthogonal matrix, float64."""

    def draw(size: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q

    return draw
