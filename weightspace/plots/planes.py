"""Planes through three models as maps: contours of the loss, the three models, and distances true to scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weightspace.connectivity import Plane
from weightspace.errors import WeightspaceError
from weightspace.plots.picture import (
    DEPTHS,
    Axes,
    Figure,
    FuncFormatter,
    LogNorm,
    MaxNLocator,
    Normalize,
    write_picture,
)

_LEVELS = 14
#: Losses that differ by more than this factor are drawn with logarithmic levels.
_WIDE = 5.0


def draw_planes(planes: Mapping[str, Plane], path: str | Path, *, title: str | None = None) -> Figure:
    """Plot the loss on planes side by side, in the same colours.

    Args:
        planes: label -> plane, from left to right; labels are shown above the maps if there are several.
        path: ``.png``, ``.svg`` or ``.pdf``; equal planes give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no planes, a plane has no finite loss, or the path has another suffix.
    """
    if not planes:
        raise WeightspaceError("There are no planes to draw; expected at least one.")
    return write_picture(path, lambda: _figure(planes, title))


def _figure(planes: Mapping[str, Plane], title: str | None) -> Figure:
    """Return a figure with one map per plane, and a shared colour bar."""
    levels, norm = _scale(planes)
    shapes = [(plane.y[-1] - plane.y[0]) / (plane.x[-1] - plane.x[0]) for plane in planes.values()]
    figure = Figure(figsize=(3.4 * len(planes) + 1.0, 3.4 * min(max(*shapes, 0.6), 1.4) + 0.7), layout="constrained")
    panels = list(figure.subplots(1, len(planes), squeeze=False)[0])
    drawn: list[Any] = []
    for axes, (label, plane) in zip(panels, planes.items(), strict=True):
        drawn.append(_panel(axes, plane, levels, norm))
        if len(planes) > 1:
            axes.set_title(label, loc="left")
    splits = {plane.split for plane in planes.values()}
    prefix = f"{splits.pop()} " if len(splits) == 1 else ""
    bar = figure.colorbar(drawn[-1], ax=panels, label=f"{prefix}loss (nats)", ticks=levels[::2], shrink=0.9)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:.2g}"))
    bar.ax.minorticks_off()
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _scale(planes: Mapping[str, Plane]) -> tuple[np.ndarray, Normalize]:
    """Return the contour levels shared by all planes, and the normalisation of their colours."""
    losses = np.concatenate([np.ravel(plane.loss) for plane in planes.values()])
    losses = losses[np.isfinite(losses)]
    if not losses.size:
        raise WeightspaceError("There is no finite loss on the planes, so there are no contours to draw.")
    low, high = float(losses.min()), float(losses.max())
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6  # a flat plane has one colour
    if low > 0 and high > _WIDE * low:
        # The ends are nudged outwards so that rounding leaves no hole at the lowest or highest loss.
        return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), _LEVELS), LogNorm(low, high)
    return np.linspace(low, high, _LEVELS), Normalize(low, high)


def _panel(axes: Axes, plane: Plane, levels: np.ndarray, norm: Normalize) -> Any:
    """Draw one map, and return the mappable of its colour bar."""
    losses = np.ma.masked_invalid(plane.loss)
    drawn = axes.contourf(plane.x, plane.y, losses, levels=levels, norm=norm, cmap=DEPTHS)
    axes.contour(plane.x, plane.y, losses, levels=levels, colors="white", linewidths=0.5, alpha=0.7)
    middle = float(np.mean([y for _, y in plane.positions]))
    for model, (x, y) in zip(plane.models, plane.positions, strict=True):
        axes.plot(x, y, "o", color="black", markeredgecolor="white", markersize=5.5, zorder=4)
        axes.annotate(
            model,
            (x, y),
            xytext=(0, 13 if y > middle else -13),  # away from the other models
            textcoords="offset points",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
    axes.set_aspect("equal")
    axes.spines[:].set_visible(True)
    axes.set_xlabel("distance in weight space")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
    return drawn
