"""Correlations of the units of two networks, gathered batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

#: A unit whose standard deviation is a smaller share of its mean than this says nothing but rounding.
_STILL = 1e-6


class Moments:
    """Means, squares and products of two sets of units over all samples so far, in float64.

    Batches are merged by their centred moments, so that a large mean costs no precision.

    Source:
        Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
    """

    def __init__(self, a_units: int, b_units: int) -> None:
        self.count = 0
        self.means = [torch.zeros(units, dtype=torch.float64) for units in (a_units, b_units)]
        self.squares = [torch.zeros(units, dtype=torch.float64) for units in (a_units, b_units)]
        self.products = torch.zeros(a_units, b_units, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in samples.

        Args:
            a: ``(samples, units)`` of the first network.
            b: ``(samples, units)`` of the second, of the same samples.
        """
        new = len(a)
        if not new:
            return
        share = self.count * new / (self.count + new)
        centred, shifts = [], []
        for side, values in enumerate((a.to("cpu", torch.float64), b.to("cpu", torch.float64))):
            mean = values.mean(0)
            centred.append(values - mean)
            shifts.append(mean - self.means[side])
            self.squares[side] += centred[side].square().sum(0) + share * shifts[side].square()
            self.means[side] += shifts[side] * (new / (self.count + new))
        self.products += centred[0].T @ centred[1] + share * torch.outer(*shifts)
        self.count += new

    def correlation(self) -> Tensor:
        """Return the correlation of every unit with every other; 0 for units that never change.

        Returns:
            float32 ``(a units, b units)``, between -1 and 1.
        """
        scales = []
        for mean, square in zip(self.means, self.squares, strict=True):
            alive = square > self.count * (_STILL * mean).square()
            scales.append(torch.where(alive, square.clamp_min(1e-300).rsqrt(), 0.0))
        return (scales[0][:, None] * self.products * scales[1]).float()
