"""Reliability diagrams, and the effect of temperature on predictions with a label metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.labels import LabelMetric, decision_report, fit_temperature
from weightspace.labels.results import probabilities_of
from weightspace.plots.picture import COLOURS, Axes, Figure, write_picture

_BINS = 10


def draw_calibration(
    logits: Any,
    truth: Sequence[Any],
    path: str | Path,
    *,
    metric: LabelMetric,
    observed: Sequence[Any],
    outputs: Any = "all",
    exponent: float = 2,
    temperature: float | None = None,
    title: str | None = None,
) -> Figure:
    """Plot reliability, and mean squared distance over temperature for the Fréchet mean, argmax and the best constant.

    Args:
        logits: (n, K), of the observed classes.
        truth: names of the n true labels; unobserved ones count as wrong in the reliability diagram.
        path: ``.png``, ``.svg`` or ``.pdf``.
        metric: metric on the labels.
        observed: names of the columns.
        outputs: as for ``metric.predict``.
        exponent: as for ``metric.predict``.
        temperature: temperature to mark.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: as for ``fit_temperature``, or the path has another suffix.
    """
    chosen: dict[str, Any] = {"metric": metric, "observed": observed, "outputs": outputs, "exponent": exponent}
    p = probabilities_of(logits, len(observed), temperature).numpy()
    seen = metric.names.positions(observed, "observed classes")
    right = seen[p.argmax(1)] == metric.names.positions_of(truth, "true labels")
    fit = fit_temperature(logits, truth, **chosen)
    report = decision_report(p, truth, **chosen)

    def figure() -> Figure:
        made = Figure(figsize=(7.2, 3.4), layout="constrained")
        left, axes = made.subplots(1, 2)
        _reliability(left, p.max(1), right)
        tried = np.asarray(fit.tried)
        axes.plot(tried[:, 0], tried[:, 1], color=COLOURS[1], linewidth=1.8, label="Fréchet mean")
        axes.axhline(fit.argmax, color=COLOURS[0], dashes=(5, 1.8), label="argmax")
        axes.axhline(report.constant.squared_distance, color="#777777", dashes=(1.2, 1.4), label="best constant")
        axes.axvline(temperature or 1.0, color="#BBBBBB", linewidth=0.9, zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel("temperature")
        axes.set_title(f"mean distance^{exponent:g}" if exponent != 2 else "mean squared distance", loc="left")
        made.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False)
        if title:
            made.suptitle(title, fontsize=11)
        return made

    return write_picture(path, figure)


def _reliability(axes: Axes, confidence: np.ndarray, right: np.ndarray) -> None:
    which = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    filled = np.unique(which)
    means = np.asarray([[confidence[which == one].mean(), right[which == one].mean()] for one in filled])
    shares = np.asarray([(which == one).mean() for one in filled])
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.9)
    axes.plot(*means.T, color=COLOURS[1], linewidth=1.2)
    axes.scatter(*means.T, s=12 + 160 * shares, color=COLOURS[1])
    error = float(np.sum(shares * np.abs(means[:, 0] - means[:, 1])))
    axes.set_title(f"accuracy by confidence (error {error:.3f})", loc="left")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("largest probability")
