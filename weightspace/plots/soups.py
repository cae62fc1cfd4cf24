"""Soups as in the papers: one point per model, with the recipes among them; predictions versus measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from weightspace.errors import WeightspaceError
from weightspace.plots.picture import COLOURS, Axes, Figure, FuncFormatter, Line2D, MaxNLocator, write_picture
from weightspace.plots.windows import Frame
from weightspace.soups import SoupAgainstEnsemble, SoupReport
from weightspace.soups.compare import BEST, BEST_ON_TEST

#: Markers of the rows of a report, distinguishable without colour.
_MARKS = {
    BEST: "o",
    "uniform": "s",
    "greedy": "*",
    "learned": "^",
    "model_stock": "v",
    "ensemble": "D",
    BEST_ON_TEST: "X",
}
_SINGLES = "#9A9A9A"
#: Growth of a marker for every later one in the same place, in points.
_LARGER = 5
#: Maximum size of a legend marker, in points.
_LEGEND = 9


def draw_soups(report: SoupReport, path: str | Path, *, title: str | None = None) -> Figure:
    """Plot models and recipes: test versus mean of the shifts, or validation versus test without shifts.

    Outliers that would squeeze the other points are drawn at the edge, with their coordinates in the legend.

    Args:
        report: the result of ``compare_recipes``.
        path: ``.png``, ``.svg`` or ``.pdf``; equal reports give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: the path has another suffix.
    """
    return write_picture(path, lambda: _soups(report, title))


def _soups(report: SoupReport, title: str | None) -> Figure:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    singles = [report.single(number) for number in range(len(report.names))]
    written = (lambda share: f"{100 * share:.4g} %") if report.objective.endswith("accuracy") else "{:.4g}".format
    alone, rows = _points(report, singles), _points(report, [row.scores for row in report.rows])
    frame = Frame.of([*alone, *rows])
    away = sum(not frame.holds(point) for point in alone)
    axes.plot(
        *zip(*map(frame.clipped, alone), strict=True),
        "o",
        color=_SINGLES,
        markersize=4.5,
        label=f"{len(singles)} models" + (f" ({away} outside)" if away else ""),
    )
    for index, (row, point) in enumerate(zip(report.rows, rows, strict=True)):
        mark = _MARKS.get(row.name, "P")
        at = "" if frame.holds(point) else f"\n(outside: {', '.join(map(written, point))})"
        size = (13 if mark == "*" else 8) + _LARGER * rows[index + 1 :].count(point)  # so that later markers hide none
        filled = row.name not in (BEST, BEST_ON_TEST)  # these two are models: draw rings around their points
        axes.plot(
            *frame.clipped(point),
            mark,
            color=COLOURS[index % len(COLOURS)],
            markersize=size,
            fillstyle="full" if filled else "none",
            markeredgewidth=0.8 if filled else 1.8,
            markeredgecolor="white" if filled else COLOURS[index % len(COLOURS)],
            label=row.name + (f" ({row.models} networks)" if row.models > 1 else "") + at,
            zorder=(3 if filled else 4) + index / 100,
        )
    name = report.objective
    if report.shifts:
        _finish(axes, f"test {name}", f"{name}, mean of {len(report.shifts)} shifts")
    else:
        _finish(axes, f"validation {name}", f"test {name}")
    if report.objective.endswith("accuracy"):
        percent = FuncFormatter(lambda share, _: written(share))
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):
            handle.set_markersize(min(handle.get_markersize(), _LEGEND))
    axes.set_title(title or f"{report.task}: {len(report.names)} models and their soups", loc="left")
    return figure


def _points(report: SoupReport, several: Sequence[Mapping[str, Mapping[str, float]]]) -> list[tuple[float, float]]:
    """Return the coordinates of scores."""
    name = report.objective
    if report.shifts:
        return [(scores["test"][name], report.shifted(scores)) for scores in several]
    return [(scores["validation"][name], scores["test"][name]) for scores in several]


def draw_predictions(
    pairs: Sequence[SoupAgainstEnsemble],
    path: str | Path,
    *,
    colours: Sequence[float] | None = None,
    label: str = "",
    title: str | None = None,
) -> Figure:
    """Plot the predicted versus the measured loss difference of soup and ensemble, pair by pair.

    Args:
        pairs: at least one.
        path: ``.png``, ``.svg`` or ``.pdf``.
        colours: one number per pair, which sets the colour of its point, from light to dark.
        label: meaning of the colours.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no pairs, or the path has another suffix.
    """
    if not pairs:
        raise WeightspaceError("There are no pairs to draw; expected at least one.")
    return write_picture(path, lambda: _predictions(pairs, colours, label, title))


def _predictions(
    pairs: Sequence[SoupAgainstEnsemble], colours: Sequence[float] | None, label: str, title: str | None
) -> Figure:
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    found, predicted = [pair.difference for pair in pairs], [pair.predicted for pair in pairs]
    finite = [value for value in (*found, *predicted) if math.isfinite(value)]
    bounds = [min(finite, default=0.0), max(finite, default=1.0)]
    axes.plot(bounds, bounds, color="#777777", linewidth=1, dashes=(4, 2), label="predicted = measured")
    axes.axhline(0, color="#CCCCCC", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#CCCCCC", linewidth=0.8, zorder=0)
    points = axes.scatter(
        predicted,
        found,
        c=colours if colours is not None else COLOURS[1],
        cmap="viridis_r" if colours is not None else None,
        s=18,
        edgecolors="white",
        linewidths=0.4,
        zorder=3,
    )
    if colours is not None:
        figure.colorbar(points, ax=axes, label=label, fraction=0.05)
    _finish(axes, "predicted: loss of soup − ensemble (nats)", "measured: loss of soup − ensemble (nats)")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    if title:
        axes.set_title(title, loc="left")
    return figure


def draw_points(
    x: Sequence[float], y: Sequence[float], path: str | Path, *, labels: tuple[str, str], title: str | None = None
) -> Figure:
    """Plot points, for example the gain of the mean versus the angle between fine-tunes.

    Args:
        x: horizontal coordinates.
        y: vertical coordinates, one per point.
        path: ``.png``, ``.svg`` or ``.pdf``.
        labels: labels of the two axes.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: the path has another suffix.
    """

    def draw() -> Figure:
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(x, y, "o", color=COLOURS[1], markersize=4.5, markeredgecolor="white", markeredgewidth=0.4)
        axes.axhline(0, color="#CCCCCC", linewidth=0.8, zorder=0)
        _finish(axes, *labels)
        if title:
            axes.set_title(title, loc="left")
        return figure

    return write_picture(path, draw)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid()
    axes.set_axisbelow(True)
    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
