"""Curves of loss and accuracy along the path between two networks, with their barriers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from weightspace.arguments import checked
from weightspace.connectivity import Curve, barrier
from weightspace.errors import WeightspaceError
from weightspace.plots.picture import COLOURS, DASHES, Axes, Figure, FuncFormatter, MaxNLocator, signed, write_picture

_ENDS = "#333333"


@checked
def draw_curves(curves: Mapping[str, Curve], path: str | Path, *, title: str | None = None) -> Figure:
    """Plot loss curves and any accuracies, with the barrier of each curve.

    Args:
        curves: label -> curve, in the order of the legend; the axes name the split if all curves have the same one.
        path: ``.png``, ``.svg`` or ``.pdf``; equal curves give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no curves, a curve has no barrier, or the path has another suffix.
    """
    if not curves:
        raise WeightspaceError("There are no curves to draw; expected at least one.")
    return write_picture(path, lambda: _figure(curves, title))


def _figure(curves: Mapping[str, Curve], title: str | None) -> Figure:
    """Return a figure with a panel of losses and, if a curve has accuracies, one of accuracies."""
    panels = 2 if any(curve.accuracy is not None for curve in curves.values()) else 1
    columns = 2 if panels == len(curves) == 2 else 1
    figure = Figure(figsize=(3.5 * panels, 2.7 + 0.2 * len(curves) / columns), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    splits = {curve.split for curve in curves.values()}
    prefix = f"{splits.pop()} " if len(splits) == 1 else ""
    _panel(axes[0], curves, lambda curve: curve.loss, f"{prefix}loss (nats)")
    if panels == 2:
        _panel(axes[1], curves, lambda curve: curve.accuracy, f"{prefix}accuracy")
        axes[1].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=2.6,
    )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _panel(
    axes: Axes,
    curves: Mapping[str, Curve],
    scores: Callable[[Curve], tuple[float, ...] | None],
    label: str,
) -> None:
    """Draw one score of every curve that has it."""
    for index, (name, curve) in enumerate(curves.items()):
        values = scores(curve)
        if values is None:
            continue
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            curve.positions,
            values,
            color=colour,
            dashes=DASHES[index % len(DASHES)],
            linewidth=1.8,
            label=f"{name}: barrier {signed(barrier(curve))} nats",
            clip_on=False,
        )
        ends = ((curve.positions[0], curve.positions[-1]), (values[0], values[-1]))
        axes.plot(*ends, "o", color=_ENDS, markersize=4, clip_on=False, zorder=4)
    axes.set_xlabel("position λ from A (0) to B (1)")
    axes.set_title(label, loc="left")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.margins(y=0.06)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
