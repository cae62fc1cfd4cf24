"""The alignment ``R_γ`` of two networks' leading singular vectors, between −1 and 1.

``R_γ = Σ_l Σ_{i≤k_a, j≤k_b} (u_i^a·u_j^b)(v_i^a·v_j^b) / Σ_l min(k_a, k_b)``, with ``k`` the number of singular values
of at least ``γ σ_max``. The inner sum is ``⟨U_a V_aᵀ, U_b V_bᵀ⟩``, the inner product of the polar factors of the two
truncated matrices: it is independent of signs and of the bases for equal values, and at most ``min(k_a, k_b)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict, check_compatible, check_finite
from weightspace.reprs import brief
from weightspace.spectra.decomposition import LayerSpectrum, Spectrum, check_gamma, layer_spectrum, paired
from weightspace.spectra.matrices import side_by_side, weight_matrices
from weightspace.symmetry import PermutationSpec, SymmetrySpec

#: A threshold is near-degenerate if the values next to it are closer than this, relative to the largest: rounding of
#: float32 weights then rotates the vectors by a percent.
_NEAR = 1e-5


@brief
@dataclass(frozen=True)
class SingularAlignment:
    """The alignment of two networks' leading singular vectors.

    Attributes:
        gamma: singular values of at least ``gamma`` times the largest of their matrix are counted.
        total: R of the whole networks, −1 to 1; NaN if every matrix is zero in one of them.
        per_layer: matrix -> its R; NaN if it is zero in one network.
        kept: matrix -> number of counted singular values in ``a`` and in ``b``.
        near_degenerate: matrices whose last counted singular value nearly equals the first uncounted one, in at least
            one network; the vectors there, and therefore R, are sensitive to rounding.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> a = {"layer.weight": torch.eye(4)}
        >>> alignment = ws.singular_alignment(a, a)
        >>> round(alignment.total, 6), alignment.gamma, alignment.kept
        (1.0, 0.3, {'layer.weight': (4, 4)})
    """

    gamma: float
    total: float
    per_layer: Mapping[str, float]
    kept: Mapping[str, tuple[int, int]]
    near_degenerate: tuple[str, ...]


@checked
def singular_alignment(
    a: StateDict,
    b: StateDict,
    gamma: float = 0.3,
    *,
    names: Iterable[str] | None = None,
    spec: PermutationSpec | SymmetrySpec | None = None,
) -> SingularAlignment:
    """Return R_γ of two networks, the alignment of the singular vectors of their large singular values.

    Only one layer at a time is in memory. For several ``gamma``, or repeated use, see ``spectrum`` and ``alignments``.

    Args:
        a: a network's weights.
        b: another network's weights, with the same names and shapes.
        gamma: 0 (all singular values above rounding) to 1 (only the largest).
        names: names or patterns of the tensors; default: all linear and convolutional layers (``weight_matrices``).
        spec: its statistics are excluded.

    Raises:
        CheckpointError: the networks' names or shapes differ, or weights aren't finite.
        WeightspaceError: ``gamma`` isn't between 0 and 1, or there are no weight matrices.

    Source:
        Ito, Yamada and Kumagai 2025, https://arxiv.org/abs/2402.04051, section 4.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> a = {"layer.weight": torch.diag(torch.tensor([3.0, 2.0, 1.0]))}
        >>> round(ws.singular_alignment(a, a, gamma=0.3).total, 6)
        1.0
    """
    check_gamma(gamma)
    check_compatible(a, b)
    chosen = None if names is None else list(names)
    ours, theirs = (
        weight_matrices(state, names=chosen, spec=spec, label=label) for label, state in (("a", a), ("b", b))
    )
    for label, matrices in (("a", ours), ("b", theirs)):
        check_finite({name: one.matrix for name, one in matrices.items()}, label)
    return _gathered(
        gamma,
        {
            name: _truncated(layer_spectrum(one, gamma), layer_spectrum(other, gamma), [gamma])[0]
            for name, (one, other) in side_by_side(ours, theirs).items()
        },
    )


def alignments(a: Spectrum, b: Spectrum, gammas: Sequence[float]) -> tuple[SingularAlignment, ...]:
    """Return R_γ for several ``gamma``, multiplying each layer's vectors only once.

    Args:
        a: a network's spectrum.
        b: another network's spectrum, with the same names and shapes.
        gammas: none below the ``gamma`` of either spectrum, which has no vectors there.

    Raises:
        CheckpointError: the networks' names or shapes differ.
        WeightspaceError: a ``gamma`` isn't between 0 and 1, or is below that of a spectrum.
    """
    for gamma in gammas:
        check_gamma(gamma, a, b)
    layers = {name: _truncated(one, other, gammas) for name, (one, other) in paired(a, b).items()}
    return tuple(
        _gathered(gamma, {name: parts[index] for name, parts in layers.items()}) for index, gamma in enumerate(gammas)
    )


def cross_products(a: LayerSpectrum, b: LayerSpectrum) -> Tensor:
    """Return ``(u_i^a·u_j^b)(v_i^a·v_j^b)`` for all vectors of two spectra: ``(k_a, k_b)``, float64.

    The magnitudes are the paper's heat map; the sum is the numerator of R.
    """
    return (a.left.T @ b.left) * (a.right.T @ b.right)


@dataclass(frozen=True)
class _Part:
    """One layer's contribution to R at one threshold."""

    product: float
    kept: tuple[int, int]
    near_degenerate: bool

    @property
    def alignment(self) -> float:
        return _ratio(self.product, min(self.kept))


def _truncated(a: LayerSpectrum, b: LayerSpectrum, gammas: Sequence[float]) -> list[_Part]:
    """Return a layer's contributions at several thresholds."""
    products = cross_products(a, b)
    parts = []
    for gamma in gammas:
        kept = a.kept(gamma), b.kept(gamma)
        near = any(_is_near_degenerate(one.values, count) for one, count in zip((a, b), kept, strict=True))
        parts.append(_Part(float(products[: kept[0], : kept[1]].sum()), kept, near))
    return parts


def _is_near_degenerate(values: Tensor, kept: int) -> bool:
    """Return whether the values on the two sides of a threshold are nearly equal."""
    return 0 < kept < len(values) and float(values[kept - 1] - values[kept]) < _NEAR * float(values[0])


def _gathered(gamma: float, parts: Mapping[str, _Part]) -> SingularAlignment:
    return SingularAlignment(
        gamma=gamma,
        total=_ratio(math.fsum(part.product for part in parts.values()), sum(min(p.kept) for p in parts.values())),
        per_layer={name: part.alignment for name, part in parts.items()},
        kept={name: part.kept for name, part in parts.items()},
        near_degenerate=tuple(name for name, part in parts.items() if part.near_degenerate),
    )


def _ratio(product: float, kept: int) -> float:
    """Return a mean over directions, clipped to ±1 against rounding."""
    return max(-1.0, min(1.0, product / kept)) if kept else math.nan
