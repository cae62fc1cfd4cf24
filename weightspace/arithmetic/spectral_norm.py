r"""Spectral norm, :math:`W/\sigma` with :math:`\sigma = u^\top W v`: its singular vectors for a merged weight.

The mean of unit vectors is shorter than one, and the vectors of one model belong to its own weight: either makes
:math:`\sigma` too small and the network explode. Instead, the weights ``W`` are merged, and their leading vectors are
computed from the result. If the result equals the weight of a model, that model's vectors are kept bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.arithmetic.weight_norm import PIECE, Elements
from weightspace.threads import torch_threads

#: Steps between restarts, and number of restarts, of the search for singular vectors.
_STEPS, _RESTARTS = 24, 100

#: A singular pair has converged when its residual is below this fraction of the singular value.
_RESIDUAL = 1e-10

#: Vectors whose sum is shorter than this are opposite, so their sum isn't a direction.
_OPPOSITE = 1e-6

#: Another axis than the first is used for the left vector only if it fits better by this factor.
_BETTER = 2.0


@dataclass(frozen=True)
class SpectralModel:
    """A model's tensors for a weight under spectral norm: the weight, ``u`` and ``v``, and ``σ`` if it is stored."""

    weight: Elements
    left: Tensor
    right: Tensor | None = None
    value: Tensor | None = None


def spectral_vectors(merged: Tensor, models: Sequence[SpectralModel]) -> SpectralModel:
    """Return the leading singular vectors of a merged weight, in float64.

    Args:
        merged: the weight in the dtype of the output.
        models: the merged models; the first one's vectors start the search, have the shapes of the result, and
            determine the axis of the weight that the left vector belongs to.

    Returns:
        Unit vectors with ``uᵀWv = σ``, oriented like those of the first model; that model's own vectors if the weight
        is zero or not finite.
    """
    for model in models:
        if _is_same(model.weight, merged):
            return model
    first = models[0]
    matrix = _matrix(merged, _axis(merged, first))
    if not bool(matrix.isfinite().all()) or not bool(matrix.any()):
        return first
    with torch_threads(1):
        start = first.left.flatten().double() if first.right is None else first.right.flatten().double()
        left, right, value = _leading(matrix, start @ matrix if first.right is None else start)
    sign = -1.0 if (left @ first.left.flatten().double().to(left.device)) < 0 else 1.0
    return SpectralModel(
        first.weight,
        (sign * left).view(first.left.shape),
        None if first.right is None else (sign * right).view(first.right.shape),
        None if first.value is None else value.expand(first.value.shape),
    )


def normalised(weight: Tensor, model: SpectralModel) -> Tensor:
    """Return ``W/σ`` in float64, as a network computes it in evaluation mode.

    Args:
        weight: ``W``.
        model: its vectors. If only ``u`` is stored, ``v`` is the normalised ``Wᵀu``, as in many generative adversarial
            networks.
    """
    matrix = _matrix(weight, _axis(weight, model))
    left = model.left.flatten().double().to(matrix.device)
    if model.right is None:
        right = _unit(left @ matrix)
        return weight.double() / (matrix @ right).norm()
    return weight.double() / (left @ matrix @ model.right.flatten().double().to(matrix.device))


def _is_same(weight: Elements, merged: Tensor) -> bool:
    """Return whether a merged weight equals that of a model, rounded in the same way."""
    flat = merged.reshape(-1)
    return all(
        torch.equal(weight.read(start, start + len(part)).to(flat.dtype), part)
        for start, part in zip(range(0, len(flat), PIECE), flat.split(PIECE), strict=True)
    )


def _axis(merged: Tensor, model: SpectralModel) -> int:
    """Return the axis of the weight that the left vector runs along: usually 0, for transposed convolutions 1."""
    first, *others = [axis for axis, size in enumerate(merged.shape) if size == model.left.numel()]
    if not others or model.right is None:
        return first
    weight = model.weight.read(0, merged.numel()).view(merged.shape)
    left, right = model.left.flatten().double(), model.right.flatten().double()
    fits = {axis: abs(float(left @ _matrix(weight, axis) @ right)) for axis in (first, *others)}
    best = max(others, key=lambda axis: fits[axis])
    return best if fits[best] > _BETTER * fits[first] else first


def _matrix(weight: Tensor, axis: int) -> Tensor:
    """Return a weight as a float64 matrix with an axis as rows, as in spectral norm."""
    return weight.movedim(axis, 0).flatten(1).double()


def _leading(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular vectors and value of a non-zero matrix.

    Accelerated power iteration: every restart takes the best vector of the space spanned by a few steps.

    Args:
        matrix: float64.
        start: a guess of the right vector; a fixed random vector supplements it.

    Source:
        Golub and Kahan 1965, https://doi.org/10.1137/0702016, restarted, with full orthogonalisation.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(matrix.shape[1], generator=generator, dtype=torch.float64)
    right = _unit(drawn).to(matrix.device)
    if bool(start.isfinite().all()):
        both = right + _unit(start.to(matrix.device))
        right = _unit(both) if bool(both.norm() > _OPPOSITE) else right  # vectors of length 1 may be opposite
    for _ in range(_RESTARTS):
        right, value, residual = _restarted(matrix, right)
        if residual <= _RESIDUAL * value:
            break
    left = matrix @ right
    return _unit(left), right, left.norm()


def _restarted(matrix: Tensor, start: Tensor) -> tuple[Tensor, float, float]:
    """Return the best right vector in the Krylov space of a start, its singular value, and its residual."""
    lefts, rights = [matrix @ start], [start]
    alphas, betas = [_normalise(lefts[0])], list[float]()
    for _ in range(min(_STEPS, *matrix.shape)):
        following = _orthogonal(lefts[-1] @ matrix, rights)
        betas.append(_normalise(following))
        if betas[-1] <= _RESIDUAL * max(alphas) or len(rights) == _STEPS:
            break
        rights.append(following)
        lefts.append(_orthogonal(matrix @ following, lefts))
        alphas.append(_normalise(lefts[-1]))
    size = len(alphas)
    upper = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    upper += torch.diag(torch.tensor(betas[: size - 1], dtype=torch.float64), 1)
    inner_left, values, inner_right = torch.linalg.svd(upper)
    vector = torch.stack(rights, 1) @ inner_right[0].to(matrix.device)
    residual = betas[size - 1] * abs(float(inner_left[-1, 0])) if len(betas) == size else 0.0
    return _unit(vector), float(values[0]), residual


def _orthogonal(vector: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """Return the component of a vector orthogonal to an orthonormal basis; two passes suffice."""
    stacked = torch.stack(list(basis))
    for _ in range(2):
        vector = vector - (stacked @ vector) @ stacked
    return vector


def _normalise(vector: Tensor) -> float:
    """Normalise a vector in place, unless it is zero, and return its length."""
    length = float(vector.norm())
    if length > 0 and math.isfinite(length):
        vector /= length
    return length


def _unit(vector: Tensor) -> Tensor:
    """Return a vector normalised, or unchanged if it is zero."""
    length = vector.norm()
    return vector / length if length > 0 else vector
