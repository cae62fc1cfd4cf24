"""Gain of the Fréchet mean over argmax on a tree, by the number of observed classes and the temperature.

Random trees of 300 labels; the classifier knows K of them. Its logits fall with the distance between the true label and
the class, with noise, and are then divided by a temperature that makes it over- or under-confident. The gain is
1 − (mean squared distance of the Fréchet mean) / (that of argmax): negative where argmax should be kept.

    python analyses/tree_gain.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from report import HERE, Row, medians, printed, save

import weightspace as ws
from weightspace.labels import decision_report
from weightspace.plots.picture import COLOURS, DASHES, Figure, write_picture

LABELS, ROWS = 300, 1000
OBSERVED = (5, 10, 30, 100, 300)
TEMPERATURES = (0.1, 0.3, 1.0, 3.0, 10.0)
#: One for every number of classes, as there are fewer dashes.
MARKERS = "osD^v"


def gains(trees: int) -> Iterator[tuple[str, Row]]:
    """Yield the median gains over trees, a row for every number of classes, a column for every temperature."""
    for count in OBSERVED:
        found = []
        for seed in range(trees):
            rng = np.random.default_rng(seed)
            parents = [-1, *(int(rng.integers(0, i)) for i in range(1, LABELS))]
            metric = ws.LabelMetric.from_tree(parents)
            seen = rng.permutation(LABELS)[:count]
            truth = rng.integers(0, LABELS, ROWS)
            logits = -metric.distances(truth, seen) + rng.normal(0, 1, (ROWS, count))
            row = {}
            for temperature in TEMPERATURES:
                p = torch.softmax(torch.from_numpy(logits) / temperature, -1)
                report = decision_report(p, truth, metric=metric, observed=seen.tolist())
                row[f"T = {temperature:g}"] = 1 - report.frechet.squared_distance / report.argmax.squared_distance
            row["1 − constant / argmax"] = 1 - report.constant.squared_distance / report.argmax.squared_distance
            found.append(row)
        yield f"K = {count}", medians(found)


def draw(rows: dict[str, Row], path: Path) -> None:
    """Draw a line for every number of classes."""

    def figure() -> Figure:
        made = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = made.subplots()
        for index, (name, row) in enumerate(rows.items()):
            values = [row[f"T = {temperature:g}"] for temperature in TEMPERATURES]
            line = axes.plot(TEMPERATURES, values, color=COLOURS[index], dashes=DASHES[index % 4], label=name)[0]
            line.set(marker=MARKERS[index], markersize=4)
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_ylim(-1.5, 1)
        axes.set_xlabel("temperature of the classifier")
        axes.set_title("gain in squared distance over argmax", loc="left")
        axes.legend(frameon=False, fontsize=8)
        return made

    write_picture(path, figure)


@click.command(help=f"\b\n{__doc__}")
@click.option("--trees", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(trees: int, output: Path) -> None:
    """Print the table, write the results, draw."""
    torch.set_num_threads(1)
    found = printed(gains(trees), middle=False)
    save("tree_gain", {"labels": LABELS, "trees": trees, "rows": found}, output)
    draw(found, output / "figures" / "tree_gain.png")


if __name__ == "__main__":
    main()
