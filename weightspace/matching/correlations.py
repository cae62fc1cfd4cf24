"""Correlations between the units of two networks, in the form used for matching weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.matching.activation_sites import Forward, Place, Recorder, places_of
from weightspace.matching.gains import Pair
from weightspace.symmetry import PermutationSpec
from weightspace.symmetry.pattern import Block, Fixed, Units

#: A unit whose standard deviation is below this fraction of its mean varies only by rounding.
_STILL = 1e-6


def correlated(
    spec: PermutationSpec, target: nn.Module, source: nn.Module, forward: Forward, batches: Iterable[Any]
) -> list[Pair]:
    """Return a pair of blocks for every part of every activation site.

    The inner product of a pair under some permutations is the sum of the correlations of the paired units.

    Args:
        spec: the architecture's spec.
        target: the fixed network.
        source: the network to permute.
        forward: runs a network on a batch.
        batches: inputs of the networks.

    Raises:
        WeightspaceError: there are no batches, or activations aren't finite.
    """
    places: list[Place] | None = None
    parts: dict[tuple[Place, int], _Part] = {}
    for batch in batches:
        if places is None:
            places = places_of(spec, target, forward, batch)
        taps = {place.tap for place in places}
        a, b = (Recorder(network, taps).run(forward, batch) for network in (target, source))
        for place in places:
            for label, tensor in (("target", a[place.tap]), ("source", b[place.tap])):
                if not bool(tensor.isfinite().all()):
                    raise WeightspaceError(f"The {label}'s activations at {place.tap.module!r} are not finite.")
            ends = (place.blocks(spec, tensors[place.tap]) for tensors in (a, b))
            for number, (one, other) in enumerate(zip(*ends, strict=True)):
                if any(isinstance(dim, Units) for dim in one.dims):
                    parts.setdefault((place, number), _Part(one)).add(one.view, other.view)
    if places is None:
        raise WeightspaceError("Found no batches to compare activations on; expected inputs of the networks.")
    return [part.pair() for part in parts.values()]


class _Part:
    """A part of an activation site in which every dimension is one group or a sample dimension."""

    def __init__(self, block: Block) -> None:
        self.places = [place for place, dim in enumerate(block.dims) if isinstance(dim, Units)]
        self.units = tuple(dim for dim in block.dims if isinstance(dim, Units))
        self.sizes = [block.view.shape[place] for place in self.places]
        self.sums = CrossCorrelation(math.prod(self.sizes), math.prod(self.sizes))

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add the activations of both networks."""
        self.sums.add(self._rows(a), self._rows(b))

    def _rows(self, view: Tensor) -> Tensor:
        """Return ``(samples, units)``; fixed dimensions next to the units, such as positions, count as samples."""
        rest = [dim for dim in range(view.ndim) if dim not in self.places]
        return view.permute(*rest, *self.places).reshape(-1, math.prod(self.sizes))

    def pair(self) -> Pair:
        """Return ones at every unit of the target, paired with the correlations of all source units with it."""
        count = math.prod(self.sizes)
        source = Block(self.sums.correlation().view(count, *self.sizes), (Fixed(count), *self.units))
        return Pair(torch.eye(count).view(count, *self.sizes), source, (None, *(unit.group for unit in self.units)))


class CrossCorrelation:
    """Means, squares and products of two sets of units over all samples so far, in float64.

    Batches are merged by their centred moments, so a large mean costs no precision.

    Source:
        Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
    """

    def __init__(self, a_units: int, b_units: int) -> None:
        self.count = 0
        self.means = [torch.zeros(units, dtype=torch.float64) for units in (a_units, b_units)]
        self.squares = [torch.zeros(units, dtype=torch.float64) for units in (a_units, b_units)]
        self.products = torch.zeros(a_units, b_units, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add samples.

        Args:
            a: ``(samples, units)`` of the first network.
            b: ``(samples, units)`` of the second, for the same samples.
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
            varying = square > self.count * (_STILL * mean).square()
            scales.append(torch.where(varying, square.clamp_min(1e-300).rsqrt(), 0.0))
        return (scales[0][:, None] * self.products * scales[1]).float()
