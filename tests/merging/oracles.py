"""Naive implementations of every merge method in float64, from the formulas of the papers, independent of the package.

Models and base are numpy arrays of one shape; there is one weight or density per model. Masks are given, not drawn.
Sparsifying methods keep the largest by size, equal ones from the first position on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = Sequence[Array]


def deltas(models: Arrays, base: Array) -> list[Array]:
    return [model - base for model in models]


def norm(array: Array) -> float:
    """The Euclidean norm, with no overflow or underflow on the way."""
    largest = float(np.abs(array).max(initial=0.0))
    return largest * math.sqrt(float(np.sum((array / largest) ** 2))) if largest > 0 else 0.0


def cosine(a: Array, b: Array) -> float:
    """The cosine of two tensors, 0 beside a zero one; of collinear ones it is 1 or -1 to the last bit."""
    if not norm(a) or not norm(b):
        return 0.0
    return max(-1.0, min(1.0, float(np.sum((a / norm(a)) * (b / norm(b))))))


# Means and arcs


def linear(models: Arrays, weights: Sequence[float], normalize: bool = True) -> Array:
    total = math.fsum(weights) if normalize else 1.0
    return sum(w * x for w, x in zip(weights, models, strict=True)) / total


# Differences from a base


def task_arithmetic(
    models: Arrays, base: Array, weights: Sequence[float], factor: float = 1.0, normalize: bool = False
) -> Array:
    return base + factor * weighted_sum(deltas(models, base), weights, normalize)


def lines(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    layer: tuple[int, int] | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> Array:
    """LiNeS; ``layer`` counts from 0, and is None outside the layers."""
    alpha = 1 / len(models) if alpha is None else alpha
    beta = 1 - alpha if beta is None else beta
    factor = alpha if layer is None else alpha + beta * layer[0] / (layer[1] - 1)
    return task_arithmetic(models, base, weights, factor)


def weighted_sum(terms: Arrays, weights: Sequence[float], normalize: bool) -> Array:
    return linear(terms, weights, normalize)


def wise_ft(model: Array, base: Array, alpha: float) -> Array:
    return (1 - alpha) * base + alpha * model


def order(delta: Array) -> NDArray[np.intp]:
    """Positions by falling size, equal ones from the first on."""
    return np.argsort(-np.abs(delta).ravel(), kind="stable")


def largest(delta: Array, count: int) -> Array:
    """The delta with all but its ``count`` largest elements at 0."""
    kept = np.zeros(delta.size)
    places = order(delta)[:count]
    kept[places] = delta.ravel()[places]
    return kept.reshape(delta.shape)


def trim_count(density: float, size: int) -> int:
    return size if density >= 1 else max(1, math.floor(density * size))


def l1_restored(kept: Array, delta: Array) -> Array:
    left = np.abs(kept).sum()
    return kept * (np.abs(delta).sum() / left) if left > 0 else kept


def consensus_of_signs(terms: Arrays, weights: Sequence[float], normalize: bool, votes: Arrays | None = None) -> Array:
    """The sum of the (weighted) terms that agree with the elected sign, over the sum of their weights."""
    sign = np.where(sum(terms if votes is None else votes) >= 0, 1.0, -1.0)
    total, divisor = np.zeros_like(terms[0]), np.zeros_like(terms[0])
    for term, weight in zip(terms, weights, strict=True):
        agrees = np.sign(term) == sign
        total += np.where(agrees, term, 0)
        divisor += np.where(agrees, weight, 0)
    return total / np.where(divisor == 0, 1, divisor) if normalize else total


def ties(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    factor: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
) -> Array:
    trimmed = []
    for delta, share in zip(deltas(models, base), density, strict=True):
        kept = largest(delta, trim_count(share, delta.size))
        trimmed.append(l1_restored(kept, delta) if rescale else kept)
    terms = [w * kept for w, kept in zip(weights, trimmed, strict=True)]
    return base + factor * consensus_of_signs(terms, weights, normalize)


def localize_and_stitch(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    factor: float = 1.0,
    scope: str = "tensor",
) -> Array:
    """For a single tensor, for which both scopes are the same."""
    assert scope == "tensor"
    kept = [largest(d, trim_count(share, d.size)) for d, share in zip(deltas(models, base), density, strict=True)]
    total = sum(w * vector for w, vector in zip(weights, kept, strict=True))
    divisor = sum(w * (vector != 0) for w, vector in zip(weights, kept, strict=True))
    return base + factor * total / np.where(divisor == 0, 1, divisor)


def tall_masks(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    tall_mask_lambda: Sequence[float],
    inner: str,
    density: Sequence[float],
) -> tuple[Array, list[NDArray[np.bool_]]]:
    """The multi-task vector and the masks of the tasks, which see task vectors that aren't trimmed."""
    own = [w * delta for w, delta in zip(weights, deltas(models, base), strict=True)]
    trimmed = [
        w * largest(delta, trim_count(share, delta.size))
        for w, delta, share in zip(weights, deltas(models, base), density, strict=True)
    ]
    total = consensus_of_signs(trimmed, weights, False) if inner == "ties" else sum(trimmed, np.zeros_like(base))
    masks = [np.abs(vector) >= s * np.abs(total - vector) for vector, s in zip(own, tall_mask_lambda, strict=True)]
    return total, masks


def consensus(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    tall_mask_lambda: Sequence[float],
    density: Sequence[float],
    min_tasks: int = 2,
    inner: str = "task_arithmetic",
    factor: float = 1.0,
) -> Array:
    total, masks = tall_masks(models, base, weights, tall_mask_lambda, inner, density)
    return base + factor * total * (sum(mask.astype(int) for mask in masks) >= min_tasks)


def tall_mask(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    tall_mask_lambda: Sequence[float],
    density: Sequence[float],
    rebuild: int = 1,
    inner: str = "task_arithmetic",
    factor: float = 1.0,
) -> Array:
    total, masks = tall_masks(models, base, weights, tall_mask_lambda, inner, density)
    return base + factor * total * masks[rebuild - 1]


def dropped(delta: Array, mask: NDArray[np.bool_], density: float, rescale: str) -> Array:
    """A delta under a mask and rescaled; density 1 keeps all and rescales nothing."""
    if density >= 1:
        return delta
    kept = delta * mask
    if rescale == "l1":
        return l1_restored(kept, delta)
    return kept / density if rescale == "density" and density > 0 else kept


def masked_linear(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    masks: Sequence[NDArray[np.bool_]],
    factor: float = 1.0,
    normalize: bool = False,
    rescale: str = "l1",
) -> Array:
    """dare_linear and della_linear, which differ in the masks."""
    terms = [dropped(*each, rescale) for each in zip(deltas(models, base), masks, density, strict=True)]
    return base + factor * weighted_sum(terms, weights, normalize)


def masked_consensus(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    masks: Sequence[NDArray[np.bool_]],
    factor: float = 1.0,
    normalize: bool = False,
    rescale: str = "l1",
) -> Array:
    """dare_ties (normalize false by default) and della (true)."""
    kept = [dropped(*each, rescale) for each in zip(deltas(models, base), masks, density, strict=True)]
    terms = [w * each for w, each in zip(weights, kept, strict=True)]
    return base + factor * consensus_of_signs(terms, weights, normalize)


def della_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """The probabilities to be kept, by the rank of the size along dim 1; a vector is one row."""
    if delta.ndim < 2:
        return della_probabilities(delta.reshape(1, -1), density, epsilon).reshape(delta.shape)
    lines = np.moveaxis(np.abs(delta), 1, -1)
    found = np.full_like(lines, density)
    count = lines.shape[-1]
    if count > 1:
        for place in np.ndindex(lines.shape[:-1]):
            for rank, index in enumerate(np.argsort(lines[place], kind="stable")):
                found[(*place, index)] = density - epsilon + 2 * epsilon * rank / (count - 1)
    return np.moveaxis(found, -1, 1)


def crumbs(delta: Array, density: float, gamma: float) -> Array:
    """The delta without its largest elements, and without so many of the smallest that its density remains."""
    size = delta.size
    remaining = size if density >= 1 else math.floor(density * size)
    top = math.floor(gamma * size)
    if top + remaining > size:
        top = size - remaining
    places = order(delta)[top : top + remaining]
    kept = np.zeros(size)
    kept[places] = delta.ravel()[places]
    return kept.reshape(delta.shape)


def breadcrumbs(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    factor: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,
    elect: bool = False,
) -> Array:
    """With ``elect`` breadcrumbs_ties."""
    kept = [crumbs(*each) for each in zip(deltas(models, base), density, gamma, strict=True)]
    if rescale:
        kept = [l1_restored(*pair) for pair in zip(kept, deltas(models, base), strict=True)]
    if elect:
        return base + factor * consensus_of_signs(
            [w * k for w, k in zip(weights, kept, strict=True)], weights, normalize
        )
    return base + factor * weighted_sum(kept, weights, normalize)


def model_stock(models: Arrays, base: Array, filter_wise: bool = False) -> Array:
    if filter_wise and base.ndim > 1:
        rows = range(len(base))
        return np.stack([model_stock([model[row] for model in models], base[row]) for row in rows])
    ds, count = deltas(models, base), len(models)
    cos = float(np.mean([cosine(a, b) for a, b in itertools.combinations(ds, 2)]))
    below = 1 + (count - 1) * cos
    t = 0.0 if below <= 1e-12 or not any(norm(d) for d in ds) else count * cos / below
    return t * sum(models) / count + (1 - t) * base


def sce(models: Arrays, base: Array, select_topk: float = 1.0) -> Array:
    ds = deltas(models, base)
    if select_topk < 1:
        shifts = np.stack(models) - models[0]
        variance = len(models) * (shifts**2).sum(axis=0) - shifts.sum(axis=0) ** 2  # times N²; whole numbers stay exact
        count = math.floor(select_topk * np.count_nonzero(variance))
        mask = largest(variance, count) != 0
        ds = [d * mask for d in ds]
    energies = [float(np.mean(d**2)) for d in ds]
    whole = sum(energies)
    shares = [energy / whole for energy in energies] if whole > 0 else [1 / len(ds)] * len(ds)
    return base + consensus_of_signs([w * d for w, d in zip(shares, ds, strict=True)], shares, True, votes=ds)


def nearswap(model: Array, base: Array, t: float) -> Array:
    gap = np.abs(base - model)
    weight = np.clip(np.divide(t, gap, out=np.ones_like(gap), where=gap > 0), 0, 1)
    return base + weight * (model - base)


def log_softmax(array: Array) -> Array:
    shifted = array - array.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def arcee_fusion(model: Array, base: Array) -> Array:
    importance, bound = arcee_importance(model, base)
    return np.where(importance >= bound, np.atleast_1d(model), np.atleast_1d(base)).reshape(base.shape)


def arcee_importance(model: Array, base: Array) -> tuple[Array, float]:
    x, b = np.atleast_1d(model), np.atleast_1d(base)
    p, q = log_softmax(x), log_softmax(b)
    importance = np.abs(x - b) * np.maximum((np.exp(p) * (p - q)).sum(axis=-1, keepdims=True), 0)
    low, median, high = (lower_quantile(importance, share) for share in (0.25, 0.5, 0.75))
    return importance, median + 1.5 * (high - low)


def lower_quantile(array: Array, share: float) -> float:
    return float(np.sort(array, axis=None)[int(share * (array.size - 1))])


def ram(models: Arrays, base: Array, epsilon: float = 1e-5, alone: Sequence[float] | None = None) -> Array:
    ds = deltas(models, base)
    changed = [np.abs(d) > epsilon for d in ds]
    count = sum(mask.astype(int) for mask in changed)
    merged = np.zeros_like(base)
    for d, mask, factor in zip(ds, changed, alone or [1.0] * len(ds), strict=True):
        merged += np.where(mask & (count == 1), factor * d, 0)
        merged += np.where(mask & (count > 1), d / np.maximum(count, 1), 0)
    return base + merged


def ramplus_tl(models: Arrays, base: Array, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2) -> Array:
    changed = [np.abs(d) > epsilon for d in deltas(models, base)]
    count = sum(mask.astype(int) for mask in changed)
    factors = []
    for mask in changed:
        unique, shared = int((mask & (count == 1)).sum()), int((mask & (count > 1)).sum())
        factors.append(1 + r * min(max(shared / unique if unique else alpha, 0), alpha))
    return ram(models, base, epsilon, factors)
