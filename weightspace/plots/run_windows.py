"""Plot of the scores of checkpoint averages against the number of checkpoints."""

from __future__ import annotations

from pathlib import Path

from weightspace.plots.picture import COLOURS, DASHES, Figure, MaxNLocator, write_picture
from weightspace.runs.windows import WindowScores


def draw_windows(windows: WindowScores, path: str | Path, *, title: str | None = None) -> Figure:
    """Plot the score of the average of the last checkpoints against their number, with the best average marked.

    Args:
        windows: the result of ``score_windows``.
        path: ``.png``, ``.svg`` or ``.pdf``; equal scores give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: the path has another suffix.
    """
    return write_picture(path, lambda: _figure(windows, title))


def _figure(windows: WindowScores, title: str | None) -> Figure:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    counts = range(1, len(windows.first_steps) + 1)
    for index, (split, values) in enumerate(windows.scores.items()):
        (line,) = axes.plot(counts, values, marker="o", markersize=3.5, color=COLOURS[index], label=split)
        line.set_dashes(DASHES[index] or (None, None))
        if index == 0:
            best = windows.best
            named = "best: the last alone" if best == 1 else f"best: the last {best}"
            axes.plot(best, values[best - 1], "*", color=COLOURS[0], markersize=12, label=named, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"checkpoints averaged, back from step {windows.last_step:,}")
    axes.set_ylabel(windows.objective)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(title or f"Averages of a run, {windows.schedule} weights", loc="left", fontsize=10)
    return figure
