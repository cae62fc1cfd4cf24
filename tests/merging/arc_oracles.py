"""Naive implementations of the methods along arcs; ``oracles`` has the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from oracles import Array, Arrays, cosine, deltas, norm


def slerp(base: Array, model: Array, t: float) -> Array:
    cos = cosine(base, model)
    if abs(cos) > 0.9995:
        return (1 - t) * base + t * model
    return arc(base, model, math.acos(cos), t)


def arc(a: Array, b: Array, theta: float, t: float) -> Array:
    return math.sin((1 - t) * theta) / math.sin(theta) * a + math.sin(t * theta) / math.sin(theta) * b


def nuslerp(
    models: Arrays,
    weights: Sequence[float],
    base: Array | None = None,
    flatten: bool = True,
    row_wise: bool = False,
) -> Array:
    if base is not None:
        return base + nuslerp(deltas(models, base), weights, None, flatten, row_wise)
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    a, b = models
    if flatten or a.ndim < 2:
        return nuslerp_line(a, b, t)
    axis = 0 if row_wise else -1
    lines_a, lines_b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    merged = np.empty_like(lines_a)
    for place in np.ndindex(lines_a.shape[:-1]):
        merged[place] = nuslerp_line(lines_a[place], lines_b[place], t)
    return np.moveaxis(merged, -1, axis)


def nuslerp_line(a: Array, b: Array, t: float) -> Array:
    cos = cosine(a, b)
    if 1 - cos**2 <= 1e-14:  # not 1e-16, which is below the rounding error of cos
        return (1 - t) * a + t * b
    return arc(a, b, math.acos(cos), t)


def multislerp(
    models: Arrays, weights: Sequence[float], base: Array | None = None, normalize_weights: bool = True
) -> Array:
    if base is not None:
        return base + multislerp(deltas(models, base), weights, None, normalize_weights)
    shares = [w / math.fsum(weights) for w in weights] if normalize_weights else list(weights)
    length = sum(w * norm(x) for w, x in zip(shares, models, strict=True))
    units = [w * x / norm(x) for w, x in zip(shares, models, strict=True) if norm(x) > 0]
    return rescaled(sum(units, np.zeros_like(models[0])), length)


def rescaled(vector: Array, length: float) -> Array:
    """A vector of that length; 0 where there is no direction but what rounding has left."""
    return vector / norm(vector) * length if norm(vector) > 1e-9 else np.zeros_like(vector)


def karcher(models: Arrays, max_iter: int = 10, tol: float = 1e-5) -> Array:
    units = [x / norm(x) for x in models if norm(x) > 0]
    length = sum(norm(x) for x in models) / len(models)
    u = sum(units, np.zeros_like(models[0])) / max(1, len(units))
    if norm(u) < 1e-9:
        return np.zeros_like(u)
    u = u / norm(u)
    for _ in range(max_iter):
        tangent = sum((logarithm(u, v) for v in units), np.zeros_like(u)) / len(units)
        angle = norm(tangent)
        if angle < tol:
            break
        u = math.cos(angle) * u + math.sin(angle) * tangent / angle
        u = u / norm(u)
    return u * length


def logarithm(u: Array, v: Array) -> Array:
    """The tangent at ``u`` that leads to ``v``."""
    cos = max(-1.0, min(1.0, float(np.sum(u * v))))
    theta = math.acos(cos)
    return (theta / math.sin(theta) if theta > 0 else 1.0) * (v - cos * u)
