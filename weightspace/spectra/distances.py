"""Spectral distances: the parts of a distance between networks due to singular values and to singular directions.

Permutations preserve singular values, so no matching brings ``‖A − B‖²`` below ``Σ (σ_i^a − σ_i^b)²`` (Mirsky's bound):
it can only change directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from weightspace.checkpoints.measure import distance
from weightspace.reprs import brief
from weightspace.spectra.decomposition import LayerSpectrum, Spectrum, paired


@dataclass(frozen=True)
class SpectralDistance:
    """Squared Frobenius norms of two matrices, or their sums over a network.

    Attributes:
        squared: ``‖A − B‖²``.
        bound: ``Σ (σ_i^a − σ_i^b)²``, its lower bound for these singular values.
        norms: ``‖A‖² + ‖B‖²``, the distance of unrelated matrices.
    """

    squared: float
    bound: float
    norms: float

    @property
    def relative(self) -> float:
        """``‖A − B‖² / (‖A‖² + ‖B‖²)``: 0 for equal matrices, 1 for orthogonal, 2 for opposite; NaN for zero ones."""
        return self.squared / self.norms if self.norms else math.nan

    @property
    def gap(self) -> float:
        """The bound on the same scale: 0 for equal spectra, 1 if one of the matrices is zero; NaN if both are."""
        return self.bound / self.norms if self.norms else math.nan

    @property
    def direction(self) -> float:
        """The fraction of ``‖A − B‖²`` above the bound, due to directions; NaN for equal matrices."""
        return 1 - self.bound / self.squared if self.squared else math.nan


@brief
@dataclass(frozen=True)
class SpectralDistances:
    """The distances of two networks: ``total`` over the weight matrices, and ``per_layer``."""

    total: SpectralDistance
    per_layer: Mapping[str, SpectralDistance]


def spectral_distances(a: Spectrum, b: Spectrum) -> SpectralDistances:
    """Return the distance of two networks and Mirsky's bound on it.

    Raises:
        CheckpointError: the networks' names or shapes differ.

    Source:
        Mirsky 1960, Symmetric gauge functions and unitarily invariant norms,
        https://doi.org/10.1093/qmath/11.1.50; on matchings, Ito et al. 2025, https://arxiv.org/abs/2402.04051.
    """
    layers = {name: _distance(*pair) for name, pair in paired(a, b).items()}
    sums = (math.fsum(getattr(one, field) for one in layers.values()) for field in ("squared", "bound", "norms"))
    return SpectralDistances(SpectralDistance(*sums), layers)


def _distance(a: LayerSpectrum, b: LayerSpectrum) -> SpectralDistance:
    squared = distance(a.matrix, b.matrix) ** 2
    bound = float((a.values - b.values).square().sum())
    norms = float(a.values.square().sum() + b.values.square().sum())
    return SpectralDistance(squared, min(bound, squared), norms)  # any excess of the bound is rounding
