"""Plots of searches: scores by trial, and the scores on pairs of tasks with their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from weightspace.plots.picture import COLOURS, Figure, MaxNLocator, write_picture
from weightspace.plots.windows import Window
from weightspace.searching.report import SearchReport

#: Line styles of references.
_STYLES = ("--", ":", "-.", (0, (1, 3)))


def draw_search(report: SearchReport, path: str | Path, *, title: str | None = None) -> Figure:
    """Plot the score of every trial and the best so far; for several tasks, the scores on every pair of them.

    Args:
        report: the result of ``search``.
        path: ``.png``, ``.svg`` or ``.pdf``; equal reports give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: the path has another suffix.
    """
    figure = _pairs if len(report.objectives) > 1 else _trials
    return write_picture(path, lambda: figure(report, title))


def _trials(report: SearchReport, title: str | None) -> Figure:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.subplots()
    (task, objective), mode = next(iter(report.objectives.items())), next(iter(report.modes.values()))
    scored = [(trial.index + 1, trial.scores[task], trial.share) for trial in report.trials if trial.scores]
    whole = [(index, score) for index, score, share in scored if share == 1]
    parts = [(index, score) for index, score, share in scored if share < 1]
    references = [(row.name, row.scores[task]["validation"][objective]) for row in report.rows[:-1]]
    window = Window.of(score for _, score in [*whole, *parts, *references])
    _draw_trials(axes, window, parts, ".", color="0.6", label="trials on a part of the data")
    _draw_trials(axes, window, whole, "o", color=COLOURS[0], label="trials")
    places, values = zip(*whole, strict=True)
    best = list(accumulate(values, max if mode == "max" else min))
    axes.step(places, best, where="post", color=COLOURS[0], linewidth=1.6, label="best so far")
    for style, (name, value) in zip(_STYLES * len(references), references, strict=False):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.1, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {objective}")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(title or f"{task}, {report.engine}", loc="left", fontsize=10)
    return figure


def _draw_trials(
    axes: Any, window: Window, trials: Sequence[tuple[int, float]], marker: str, *, color: str, label: str
) -> None:
    """Draw the scores of trials: those beyond the window as triangles at its edge that point to them."""
    ends = (("v", lambda score: score < window.low), ("^", lambda score: score > window.high))
    for shape, chosen in ((marker, window.holds), *ends):
        if drawn := [(place, window.clipped(score)) for place, score in trials if chosen(score)]:
            named = label if shape == marker else f"{label}, beyond the axis"
            axes.plot(*zip(*drawn, strict=True), shape, color=color, markersize=4, label=named)


def _pairs(report: SearchReport, title: str | None) -> Figure:
    pairs = list(combinations(report.objectives, 2))
    figure = Figure(figsize=(4.4 * len(pairs) + 1.2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (first, second) in zip(panels, pairs, strict=True):
        _draw_pair(axes, report, first, second)
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[0].set_title(title or f"Pareto front, {report.engine}", loc="left", fontsize=10)
    return figure


def _draw_pair(axes: Any, report: SearchReport, first: str, second: str) -> None:
    """Draw the scores on two tasks."""
    scored = [trial for trial in report.trials if trial.scores and trial.share == 1]
    axes.plot(*_points(scored, first, second), "o", color="0.65", markersize=3.5, label="trials")
    front = sorted((report.trials[index] for index in report.front), key=lambda trial: trial.scores[first])
    axes.plot(*_points(front, first, second), "o-", color=COLOURS[0], markersize=4.5, label="front")
    best = report.trials[report.best]
    axes.plot(best.scores[first], best.scores[second], "*", color=COLOURS[0], markersize=12, label="best mean")
    for marker, row in zip("s^vDPX", report.rows[:-1], strict=False):
        at = [row.scores[task]["validation"][report.objectives[task]] for task in (first, second)]
        axes.plot(*at, marker, color=COLOURS[1], fillstyle="none", linestyle="", label=row.name)
    axes.set_xlabel(f"{first}, validation {report.objectives[first]}")
    axes.set_ylabel(f"{second}, validation {report.objectives[second]}")


def _points(trials: Any, first: str, second: str) -> tuple[list[float], list[float]]:
    return [trial.scores[first] for trial in trials], [trial.scores[second] for trial in trials]
