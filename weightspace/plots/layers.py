"""Differences between the sources of a merge as tables in colour: a row per layer, a column per model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.merging import SourceDifferences
from weightspace.plots.picture import SIZES, Axes, Figure, Normalize, signed, write_picture

#: Inches a row and a column, of names, and of headings.
_ROW, _COLUMN, _HEADING = 0.24, 0.62, 1.15
_LETTER = 0.075
#: Colours of cosines, from -1 to 1.
_SIGNED = "PuOr"


def draw_differences(found: SourceDifferences, path: str | Path, *, title: str | None = None) -> Figure:
    """Draw norms, changed elements, cosines and sign conflicts of every layer side by side.

    Args:
        found: the result of ``source_differences``.
        path: ``.png``, ``.svg`` or ``.pdf``; equal differences give equal files.
        title: title of the figure.

    Raises:
        CheckpointError: the file cannot be written.
        WeightspaceError: there are no layers, or the path has another suffix.
    """
    if not found.layers:
        raise WeightspaceError("There are no layers to draw; expected one or more.")
    return write_picture(path, lambda: _figure(found, title))


def _figure(found: SourceDifferences, title: str | None) -> Figure:
    """Return a panel per quantity; those of cosines and conflicts need two models."""
    several = len(found.models) > 1
    norms, above = [layer.relative for layer in found.layers], [layer.above for layer in found.layers]
    panels = [
        ("‖Δ‖/‖reference‖", _square(norms), found.models, SIZES),
        (f"changed by > {found.threshold:g} RMS", _square(above), found.models, SIZES),
    ]
    if several:
        cosines = [[layer.others(index) for index in range(len(found.models))] for layer in found.layers]
        panels.append(("cosine with the others", _square(cosines), found.models, _SIGNED))
        panels.append(("sign conflicts", _square([[layer.conflicts] for layer in found.layers]), ("all",), SIZES))
    names = [layer.name for layer in found.layers]
    widths = [max(_COLUMN * len(models), 1.3) for _, _, models, _ in panels]
    longest = max(map(len, found.models))
    width = sum(widths) + 0.35 * len(panels) + _LETTER * max(map(len, names))
    height = _ROW * len(names) + _HEADING + 0.7 * _LETTER * longest + (0.3 if title else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths, sharey=True)[0]
    for axes, (heading, square, models, colours) in zip(grid, panels, strict=True):
        _panel(axes, square, models, colours)
        axes.set_title(heading, loc="left", fontsize=9)
    grid[0].set_yticks(range(len(names)), names)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _square(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Return rows as numbers, NaN where there is none."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=float)


def _panel(axes: Axes, square: np.ndarray, models: tuple[str, ...], colours: str) -> None:
    """Draw one quantity, with its numbers."""
    if colours == _SIGNED:
        norm = Normalize(-1, 1)
    else:
        norm = Normalize(0, float(np.max(square, initial=0, where=np.isfinite(square))) or 1)
    axes.imshow(np.ma.masked_invalid(square), cmap=colours, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(square):
        if np.isfinite(value):
            depth = float(norm(value))
            dark = abs(depth - 0.5) > 0.35 if colours == _SIGNED else depth > 0.6
            colour = "white" if dark else "black"
            text = signed(value, 3) if abs(value) >= 0.001 or not value else f"{value:.0e}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(models)), models, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
