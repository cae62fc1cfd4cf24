"""Spectra: singular values and vectors of weights, and their comparison between two networks."""

from weightspace.spectra.alignment import SingularAlignment, alignments, cross_products, singular_alignment
from weightspace.spectra.decomposition import LayerSpectrum, Spectrum, spectrum
from weightspace.spectra.distances import SpectralDistance, SpectralDistances, spectral_distances
from weightspace.spectra.inputs import InputEnergy, input_energy, midpoint_change
from weightspace.spectra.matrices import WeightMatrix, weight_matrices

__all__ = [
    "InputEnergy",
    "LayerSpectrum",
    "SingularAlignment",
    "SpectralDistance",
    "SpectralDistances",
    "Spectrum",
    "WeightMatrix",
    "alignments",
    "cross_products",
    "input_energy",
    "midpoint_change",
    "singular_alignment",
    "spectral_distances",
    "spectrum",
    "weight_matrices",
]
