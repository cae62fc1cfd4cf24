"""Barrier matrices as coloured tables: one row and column per model, with the barrier of every pair as a number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from weightspace.connectivity import BarrierMatrix
from weightspace.errors import WeightspaceError
from weightspace.plots.picture import SIZES, Axes, Figure, Normalize, signed, write_picture

#: Size of a cell, and minimum width of a panel (its heading must fit), in inches.
_CELL, _WIDTH = 0.55, 2.9
#: Size of names, and of a line of a heading, in inches.
_NAMES, _LINE = 0.8, 0.2


def draw_matrices(matrices: Mapping[str, BarrierMatrix], path: str | Path, *, title: str | None = None) -> Figure:
    """Plot barrier matrices side by side, accuracy below loss, with one colour scale per row.

    Args:
        matrices: label -> matrix, from left to right; labels are shown above the columns if there are several.
        path: ``.png``, ``.svg`` or ``.pdf``; equal matrices give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no matrices, or the path has another suffix.
    """
    if not matrices:
        raise WeightspaceError("There are no matrices to draw; expected at least one.")
    return write_picture(path, lambda: _figure(matrices, title))


def _figure(matrices: Mapping[str, BarrierMatrix], title: str | None) -> Figure:
    """Return a figure with a panel for every matrix and score."""
    splits = {matrix.split for matrix in matrices.values()}
    prefix = f"{splits.pop()} " if len(splits) == 1 else ""
    rows = [(f"barrier of the {prefix}loss (nats)", 3, [np.array(matrix.barrier) for matrix in matrices.values()])]
    if all(matrix.accuracy_barrier is not None for matrix in matrices.values()):
        falls = [100 * np.array(matrix.accuracy_barrier) for matrix in matrices.values()]
        rows.append((f"barrier of the {prefix}accuracy (%)", 2, falls))
    shape = (len(rows), len(matrices)) if len(matrices) > 1 else (1, len(rows))
    side = _NAMES + _CELL * max(len(matrix.models) for matrix in matrices.values())
    side += 0.07 * max(len(name) for matrix in matrices.values() for name in matrix.models)
    height = (side + _LINE * (1 + (len(matrices) > 1))) * shape[0] + (2 * _LINE if title else 0)
    figure = Figure(figsize=(max(side, _WIDTH) * shape[1], height), layout="constrained")
    panels = iter(figure.subplots(*shape, squeeze=False).flat)
    for heading, digits, squares in rows:
        largest = max(float(np.max(square, initial=0, where=np.isfinite(square))) for square in squares)
        norm = Normalize(0, largest or 1)
        for (label, matrix), square, axes in zip(matrices.items(), squares, panels, strict=False):
            _panel(axes, matrix.models, square, norm, digits)
            axes.set_title(f"{heading}\n{label}" if len(matrices) > 1 else heading, loc="left", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _panel(axes: Axes, models: tuple[str, ...], square: np.ndarray, norm: Normalize, digits: int) -> None:
    """Draw one matrix; the diagonal stays empty."""
    off = np.ma.masked_where(np.eye(len(models), dtype=bool), square)
    axes.imshow(off, cmap=SIZES, norm=norm)
    for (i, j), value in np.ndenumerate(square):
        if i != j:
            colour = "white" if np.isfinite(value) and norm(value) > 0.6 else "black"
            axes.text(j, i, signed(value, digits), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(models)), models, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(models)), models)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
