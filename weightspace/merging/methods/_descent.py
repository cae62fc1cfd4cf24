"""Descent of quadratic losses of task vectors, with the optimisers that papers use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Adam's parameters: the learning rate of WUDI and OptMerge, and torch's defaults.
_ADAM_RATE, _BETAS, _EPSILON = 1e-5, (0.9, 0.999), 1e-8

#: Learning rate and momentum of OptMerge's gradient descent.
_RATE, _MOMENTUM = 1e-4, 0.9


def changed(differences: list[Tensor]) -> tuple[list[Tensor], list[float]]:
    """Return the differences that aren't zero, and their norms."""
    sizes = [float(torch.linalg.matrix_norm(difference.double())) for difference in differences]
    kept = [(difference, size) for difference, size in zip(differences, sizes, strict=True) if size > 0]
    return [difference for difference, _ in kept], [size for _, size in kept]


def adam(start: Tensor, slope_at: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Return the result of Adam, in the memory of its start."""
    merged = start
    mean, square = torch.zeros_like(merged), torch.zeros_like(merged)
    for step in range(1, steps + 1):
        slope = slope_at(merged)
        mean.lerp_(slope, 1 - _BETAS[0])
        square.lerp_(slope.square(), 1 - _BETAS[1])
        spread = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
        merged -= _ADAM_RATE * mean / (1 - _BETAS[0] ** step) / spread
    return merged


def momentum_factors(curvatures: Tensor, steps: int) -> Tensor:
    r"""Return how far gradient descent with momentum gets in each direction, as multiples of the half gradient there.

    The loss is :math:`\sum_j c_j (t_j - t^*_j)^2`, so that all steps are multiples of the first gradient: after them,
    :math:`t_j` has moved by :math:`q_j\, c_j (t^*_j - t_j)`. After infinitely many, :math:`q_j = 1 / c_j`.

    Args:
        curvatures: :math:`c_j`, positive.
        steps: number of steps.
    """
    factors, velocity = torch.zeros_like(curvatures), torch.zeros_like(curvatures)
    for _ in range(steps):
        velocity = _MOMENTUM * velocity + 2 * (curvatures * factors - 1)
        factors = factors - _RATE * velocity
    return factors
