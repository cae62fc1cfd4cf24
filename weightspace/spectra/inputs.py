"""Input energy: the fraction of a layer's input along its leading right singular vectors.

Inputs are given as Gram matrices ``E[x xᵀ]`` by the name of the weight, as ``collect_evidence(task, state, "gram")``
computes them from a task's data; layers without one are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import CheckpointError
from weightspace.spectra.decomposition import LayerSpectrum, Spectrum, check_gamma, paired


@dataclass(frozen=True)
class InputEnergy:
    """The energy of a layer's inputs along its leading right singular vectors.

    Attributes:
        share: ``E‖V_kᵀ x‖² / E‖x‖²``, 0 to 1; NaN for inputs that are all zero.
        directions: ``k / n``, the share expected for isotropic inputs.
    """

    share: float
    directions: float

    @property
    def ratio(self) -> float:
        """The ratio of the energy to that of isotropic inputs."""
        return self.share / self.directions if self.directions else math.nan


def input_energy(network: Spectrum, grams: Mapping[str, Tensor], *, gamma: float = 0.3) -> dict[str, InputEnergy]:
    """Return the share of each layer's input energy along the right vectors of its large singular values.

    Args:
        network: its spectrum, with vectors from ``gamma`` up.
        grams: tensor -> ``E[x xᵀ]`` of the inputs of that weight, up to a factor, ``(n, n)`` for a matrix ``(m, n)``.
        gamma: singular values of at least ``gamma`` times the largest are counted.

    Raises:
        CheckpointError: a Gram matrix doesn't fit its weight, or no weight has one.
        WeightspaceError: ``gamma`` isn't between 0 and 1, or is below that of the spectrum.
    """
    check_gamma(gamma, network)
    result = {}
    for name, layer, gram in _with_grams(network, grams):
        right = layer.right[:, : layer.kept(gamma)]
        energy = float(gram.trace())
        share = float((right * (gram @ right)).sum()) / energy if energy else math.nan
        result[name] = InputEnergy(share, right.shape[1] / right.shape[0])
    return result


def midpoint_change(a: Spectrum, b: Spectrum, grams: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the change of each layer's outputs from ``a`` to the midpoint, for its inputs in ``a``.

    ``E‖A x − ½(A + B) x‖² = ¼ tr[(A − B) Σ (A − B)ᵀ]`` with ``Σ = E[x xᵀ]``, relative to ``E‖A x‖²``: .5 for unrelated
    outputs of equal size, NaN if ``a`` has none.

    Args:
        a: the network whose inputs were measured.
        b: another network with the same names and shapes, matched or not.
        grams: tensor -> ``E[x xᵀ]`` of the inputs of that weight in ``a``.

    Raises:
        CheckpointError: the networks' names or shapes differ, or a Gram matrix doesn't fit.

    Source:
        Ito et al. 2025, https://arxiv.org/abs/2402.04051.
    """
    pairs = paired(a, b)
    result = {}
    for name, layer, gram in _with_grams(a, grams):
        own = layer.matrix.to("cpu", torch.float64)
        change = own - pairs[name][1].matrix.to("cpu", torch.float64)
        size = float((own @ gram * own).sum())
        result[name] = float((change @ gram * change).sum()) / 4 / size if size else math.nan
    return result


def _with_grams(network: Spectrum, grams: Mapping[str, Tensor]) -> Iterator[tuple[str, LayerSpectrum, Tensor]]:
    """Yield the layers whose inputs are known, with their Gram matrix in float64."""
    known = [(name, layer) for name, layer in network.layers.items() if layer.tensor in grams]
    if not known:
        raise CheckpointError(
            "No weight matrix has a Gram matrix of its inputs; expected them by the name of the weight, as "
            'returned by collect_evidence(task, state, "gram").'
        )
    for name, layer in known:
        gram, size = grams[layer.tensor], layer.matrix.shape[1]
        if tuple(gram.shape) != (size, size):
            raise CheckpointError(
                f"The Gram matrix of {layer.tensor!r} has shape {tuple(gram.shape)}, but the inputs of "
                f"{tuple(layer.matrix.shape)} weights give ({size}, {size}). Is it from this network?"
            )
        yield name, layer, gram.to("cpu", torch.float64)
