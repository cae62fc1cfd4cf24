"""Barriers between Llamas of several widths, before and after alignment by all symmetries of the architecture.

Every width is trained by the recipe of ``llama-glosses``, whose width is 96. Results of widths that are not run are
kept.

    python analyses/llama_widths.py --tasks llama-glosses-48,llama-glosses,llama-glosses-192      # three pairs each
    python analyses/llama_widths.py --tasks llama-glosses-384 --seeds 2      # one pair
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignments import Method, Table, aligned, alignment_script, middles, permuted, unaligned
from transformer_tasks import LLAMA_WIDTHS

from weightspace.plots.picture import COLOURS, Figure, write_picture

#: Positions along the linear path.
POINTS = 5
METHODS: Mapping[str, Method] = {
    "none": unaligned,
    "weight matching": permuted("weight-matching"),
    "full, weights": aligned(method="weights"),
    "full, activations": aligned(),
    "full, learned": aligned(method="learned"),
}


def draw_widths(found: Mapping[str, Table], path: Path) -> None:
    """Draw the barrier of every pair against the width, a line through the medians of each method."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Mapping[str, Table]) -> Figure:
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    measured = {LLAMA_WIDTHS[task]: pairs for task, pairs in found.items()}
    widths = sorted(measured)
    for colour, method in zip(COLOURS, METHODS, strict=False):
        for width in widths:
            values = [row[method]["barrier"] for row in measured[width].values()]
            axes.plot([width] * len(values), values, "o", color=colour, fillstyle="none", markersize=4)
        medians = [middles(measured[width])[method]["barrier"] for width in widths]
        axes.plot(widths, medians, color=colour, linewidth=1.8, label=method)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_xlabel("width of the residual stream")
    axes.set_ylabel("barrier of the test loss (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


if __name__ == "__main__":
    alignment_script(
        "llama_widths",
        __doc__,
        methods=METHODS,
        tasks=list(LLAMA_WIDTHS),
        draw=draw_widths,
        points=POINTS,
    )()
