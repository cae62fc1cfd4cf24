"""Barriers by the number of learning steps of an alignment, from 0 (the closed form) to 300.

Each number is a run of its own, in which the learning rate falls to zero at the end.

    python analyses/learning_steps.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignments import Method, Table, aligned, alignment_script, middles

from weightspace.plots.picture import COLOURS, Figure, write_picture

STEPS = (0, 25, 50, 100, 150, 200, 250, 300)
#: Positions along the linear path.
POINTS = 5
METHODS: Mapping[str, Method] = {
    str(steps): aligned(method="learned", steps=steps) if steps else aligned() for steps in STEPS
}


def draw_steps(found: Mapping[str, Table], path: Path) -> None:
    """Draw the barrier of every pair against the number of steps, one panel per task."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Mapping[str, Table]) -> Figure:
    figure = Figure(figsize=(3.6 * len(found), 3.1), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (task, pairs) in zip(panels, found.items(), strict=True):
        middle = middles(pairs)
        steps = [int(name) for name in middle]
        for by_steps in pairs.values():
            values = [row["barrier"] for row in by_steps.values()]
            axes.plot(steps, values, "o", color=COLOURS[1], fillstyle="none", markersize=4, label="pairs")
        values = [row["barrier"] for row in middle.values()]
        axes.plot(steps, values, color=COLOURS[1], linewidth=1.8, label="median")
        axes.set_title(task, loc="left")
        axes.set_xlabel("learning steps")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    panels[0].set_ylabel("barrier of the test loss (nats)")
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    panels[-1].legend(named.values(), named.keys(), frameon=False)
    return figure


if __name__ == "__main__":
    alignment_script(
        "learning_steps",
        __doc__,
        methods=METHODS,
        tasks=["vit-fashion", "llama-glosses"],
        draw=draw_steps,
        points=POINTS,
    )()
