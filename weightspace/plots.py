"""Pictures: the only door to matplotlib.

Figures are made as objects and written to files; there is no window and no state shared between calls.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from weightspace.checkpoints.disk import replacing_file
from weightspace.connectivity import Curve, barrier
from weightspace.errors import WeightspaceError

#: Format -> metadata that would make two pictures of one curve differ.
_FORMATS: Mapping[str, Mapping[str, None]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
#: Okabe and Ito's colours, told apart with any colour vision; the line's style tells them apart in grey.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_ENDS = "#333333"
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.8), (1.2, 1.4), (6, 1.5, 1.2, 1.5))
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "svg.hashsalt": "weightspace",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def draw_curves(curves: Mapping[str, Curve], path: str | Path, *, title: str | None = None) -> None:
    """Draw loss curves, and accuracies beside them where there are any, with the barrier of each.

    Args:
        curves: label -> curve, in the order of the legend; the axes name the split if all have the same.
        path: ``.png``, ``.svg`` or ``.pdf``; equal curves give equal files.
        title: above the picture.

    Raises:
        CheckpointError: the file cannot be written.
        WeightspaceError: there are no curves, a curve has no barrier, or the path has another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise WeightspaceError(f"A picture is a {', '.join(_FORMATS)} file; found {path.name!r}.")
    if not curves:
        raise WeightspaceError("There are no curves to draw; expected one or more.")
    with rc_context(_STYLE):
        picture = io.BytesIO()
        figure = _figure(curves, title)
        figure.savefig(picture, format=suffix[1:], dpi=200, metadata=dict(_FORMATS[suffix]))
    with replacing_file(path) as file:
        file.write(picture.getvalue())


def _figure(curves: Mapping[str, Curve], title: str | None) -> Figure:
    """Return one panel of losses and, if a curve has accuracies, one of these."""
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
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(
            curve.positions,
            values,
            color=colour,
            dashes=_DASHES[index % len(_DASHES)],
            linewidth=1.8,
            label=f"{name}: barrier {_signed(barrier(curve))} nats",
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


def _signed(value: float) -> str:
    """Return three decimals, with a true minus sign and no minus zero."""
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")
