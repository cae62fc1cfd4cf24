"""Naive implementations of the methods on singular vectors and on data statistics; ``oracles`` has the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from oracles import Array, Arrays, deltas, linear, norm, task_arithmetic, ties


def svd(matrix: Array, rank: int | None = None, whole: Array | None = None) -> tuple[Array, Array, Array]:
    """The leading singular triples, without those that are rounding (in a residual, that of the whole)."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    size = values[0] if whole is None else norm(whole)
    kept = min(int((values > 1e-12 * size).sum()), len(values) if rank is None else rank)
    return left[:, :kept], values[:kept], right[:kept]


def polar(matrix: Array) -> Array:
    left, _, right = svd(matrix)
    return left @ right


def tsv_m(models: Arrays, base: Array, factor: float = 1.0) -> Array:
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * sum(ds) / len(ds)
    kept = max(1, min(base.shape) // len(ds))
    lefts, values, rights = [], [], []
    for d in ds:
        left, sigma, right = svd(d, kept)
        lefts.append(left)
        values.append(sigma)
        rights.append(right)
    return base + factor * polar(np.hstack(lefts)) @ np.diag(np.concatenate(values)) @ polar(np.vstack(rights))


def iso_c(models: Arrays, base: Array, factor: float = 1.0) -> Array:
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * sum(ds) / len(ds)
    left, sigma, right = svd(sum(ds))
    return base + factor * sigma.mean() * left @ right


def iso_cts(models: Arrays, base: Array, factor: float = 1.0, common: float = 0.8) -> Array:
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * sum(ds) / len(ds)
    rank = min(base.shape)
    own = round((rank - int(common * rank)) / len(ds))
    parts = [svd(sum(ds), rank - own * len(ds))]
    shared = parts[0][0]
    parts += [svd(d - shared @ shared.T @ d, own, whole=d) for d in ds]
    lefts, values, rights = zip(*parts, strict=True)
    return base + factor * np.concatenate(values).mean() * polar(np.hstack(lefts)) @ polar(np.vstack(rights))


def knots(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    factor: float = 1.0,
    normalize: bool = True,
    inner: str = "ties",
) -> Array:
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * elementwise(ds, weights, density, normalize, inner)
    left, sigma, right = np.linalg.svd(np.hstack(ds), full_matrices=False)
    columns = base.shape[1]
    parts = [np.diag(sigma) @ right[:, i * columns : (i + 1) * columns] for i in range(len(ds))]
    return base + factor * left @ elementwise(parts, weights, density, normalize, inner)


def core_space(
    models: Arrays,
    base: Array,
    weights: Sequence[float],
    density: Sequence[float],
    factor: float = 1.0,
    normalize: bool = True,
    inner: str = "ties",
) -> Array:
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * elementwise(ds, weights, density, normalize, inner)
    left = np.linalg.svd(np.hstack(ds), full_matrices=False)[0]
    right = np.linalg.svd(np.vstack(ds), full_matrices=False)[2]
    cores = [left.T @ d @ right.T for d in ds]
    return base + factor * left @ elementwise(cores, weights, density, normalize, inner) @ right


def wudi(models: Arrays, base: Array, factor: float = 1.0, steps: int = 0) -> Array:
    """By least squares on all products, or by Adam on the gradient of the loss."""
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * sum(ds) / len(ds)
    units = [d / norm(d) for d in ds]
    if not steps:
        inputs = np.hstack([unit.T for unit in units])
        outputs = np.hstack([d @ unit.T for d, unit in zip(ds, units, strict=True)])
        return base + factor * np.linalg.lstsq(inputs.T, outputs.T, rcond=1e-8)[0].T
    merged = sum(ds)
    first, second = np.zeros_like(merged), np.zeros_like(merged)
    for step in range(1, steps + 1):
        slope = sum(2 * (merged - d) @ unit.T @ unit for d, unit in zip(ds, units, strict=True))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        merged = merged - 1e-5 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return base + factor * merged


def svc(models: Arrays, base: Array, alpha: float | None = None) -> Array:
    """Direction by direction."""
    if base.ndim != 2:
        return models[0]
    merged, *tasks = deltas(models, base)
    found, (left, sigma, right) = base, svd(merged)
    for u, value, v in zip(left.T, sigma, right, strict=True):
        scales = [(u @ merged) @ (u @ d) / ((u @ d) @ (u @ d)) for d in tasks]
        found = found + value / np.mean(
            [max(1 / len(tasks) if alpha is None else alpha, s) for s in scales]
        ) * np.outer(u, v)
    return found


def optmerge(models: Arrays, base: Array, factor: float = 1.0, tuning: str = "full", steps: int = 300) -> Array:
    """By the descent itself, step by step; without steps by least squares around its start."""
    ds = deltas(models, base)
    if base.ndim != 2:
        return base + factor * sum(ds) / len(ds)
    kept, mean = max(1, min(base.shape) // len(ds)), sum(ds) / len(ds)
    pairs = []
    for d in ds:
        left, sigma, right = svd(d, kept)
        around = svd(d - mean, kept)
        target = mean + around[0] @ np.diag(around[1]) @ around[2] if tuning == "full" else left * sigma @ right
        pairs.append((target, np.diag(sigma) @ right / norm(d)))
    start = sum(ds) if tuning == "full" else mean
    if not steps:
        inputs, outputs = (np.vstack(parts) for parts in zip(*((r, r @ (p - start).T) for p, r in pairs), strict=True))
        return base + factor * (start + np.linalg.lstsq(inputs, outputs, rcond=1e-8)[0].T)
    first, second, merged = np.zeros_like(start), np.zeros_like(start), start
    for step in range(1, steps + 1):
        slope = sum(2 * (merged - p) @ r.T @ r for p, r in pairs)
        if tuning == "lora":
            first = 0.9 * first + slope
            merged = merged - 1e-4 * first
            continue
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        merged = merged - 1e-5 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return base + factor * merged


def subspace_boosting(models: Arrays, base: Array, factor: float = 1.0, beta: float = 0.01) -> Array:
    (d,) = deltas(models, base)
    if base.ndim != 2:
        return base + factor * d
    left, sigma, right = svd(d)
    raised = max(sigma[np.cumsum(sigma) >= beta * sigma.sum()])
    return base + factor * left @ np.diag(np.maximum(sigma, raised)) @ right


def elementwise(
    terms: Arrays, weights: Sequence[float], density: Sequence[float], normalize: bool, inner: str
) -> Array:
    nothing = np.zeros_like(terms[0])
    if inner == "ties":
        return ties(terms, nothing, weights, density, normalize=normalize)
    return task_arithmetic(terms, nothing, weights, normalize=normalize)


def regmean(models: Arrays, evidence: Arrays | None, reduce: float = 0.9) -> Array:
    if evidence is None:
        return sum(models) / len(models)
    reduced = [reduce * g + (1 - reduce) * np.diag(np.diag(g)) for g in evidence]
    rows = [x.reshape(len(x), -1) for x in models]
    merged = np.linalg.solve(sum(reduced).T, sum(x @ g for x, g in zip(rows, reduced, strict=True)).T).T
    return merged.reshape(models[0].shape)


def fisher(models: Arrays, weights: Sequence[float], evidence: Arrays) -> Array:
    factors = [w * f for w, f in zip(weights, evidence, strict=True)]
    whole = sum(factors)
    merged = sum(f * x for f, x in zip(factors, models, strict=True)) / np.where(whole > 0, whole, 1)
    return np.where(whole > 0, merged, linear(models, weights))
