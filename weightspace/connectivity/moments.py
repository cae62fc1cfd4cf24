"""Means and standard deviations of units, gathered batch by batch in float64, and the affine maps that set them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: A unit whose standard deviation is below this share of the one that it should have, or of its mean, is constant up
#: to rounding: to scale it up would be to scale up noise.
_CONSTANT = 1e-5


@dataclass(frozen=True)
class Moments:
    """Of ``count`` values a unit: their mean and population variance, float64 of shape ``(units,)``."""

    count: int
    mean: Tensor
    variance: Tensor

    @property
    def std(self) -> Tensor:
        """The population standard deviation."""
        return self.variance.sqrt()


def moments(outputs: Tensor, axis: int) -> Moments:
    """Return the moments of every unit over all other axes of one batch of outputs.

    Args:
        outputs: float, of any shape.
        axis: the units lie on it.
    """
    values = outputs.detach().movedim(axis, -1).flatten(0, -2).double()
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    return Moments(len(values), mean, variance)


def pooled(first: Moments, second: Moments) -> Moments:
    """Return the moments of two sets of values together.

    Source:
        Chan, Golub, LeVeque 1979, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
    """
    count = first.count + second.count
    share = second.count / count
    apart = second.mean - first.mean
    mean = first.mean + share * apart
    variance = (1 - share) * first.variance + share * second.variance + share * (1 - share) * apart.square()
    return Moments(count, mean, variance)


def goal(first: Moments, second: Moments, position: float) -> tuple[Tensor, Tensor]:
    """Return the interpolated means and the interpolated standard deviations, ``(1 − λ) x + λ y`` of each."""
    mean = (1 - position) * first.mean + position * second.mean
    return mean, (1 - position) * first.std + position * second.std


def setting(found: Moments, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(scale, shift)`` such that ``scale · x + shift`` has this mean and standard deviation.

    A unit that is constant, up to rounding, cannot be scaled into one that is not: it gets the mean only.

    Args:
        found: the moments of ``x``.
        mean: float64 of shape ``(units,)``.
        std: likewise, not negative.
    """
    alive = found.std > _CONSTANT * torch.maximum(std, found.mean.abs())
    scale = torch.where(alive, std / torch.where(alive, found.std, 1), 1)
    return scale, mean - scale * found.mean
