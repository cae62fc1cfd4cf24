"""Width, learning rate and weight decay: what makes networks connect, and align their singular vectors.

Ito, Yamada and Kumagai (https://arxiv.org/abs/2402.04051) state that wider networks, larger learning rates and stronger
weight decay leave fewer large singular values, whose vectors weight matching can align.

    python analyses/sweeps.py                                    # all three, five pairs each, in some three minutes
    python analyses/sweeps.py --sweeps weight-decay --pairs 2    # a quick look
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from pairs import Pair, measure, medians, neighbours
from recipe import CACHE, RECIPE, WIDTH, description, digits_task, summary, trained
from report import HERE, table_head, table_row, write_results

from weightspace.plots.picture import COLOURS, DASHES, Axes, Figure, write_picture
from weightspace.tasks import ClassificationTask, Recipe

#: Of the sweep over weight decay: large steps, long enough for the decay to act, small ones in the end.
DECAYING = Recipe(epochs=60, learning_rate=0.15, cooldown=True, optimizer="sgd")


def of_width(width: float) -> ClassificationTask:
    """Return the digits with hidden layers of this width."""
    return digits_task(int(width))


def of_learning_rate(rate: float) -> ClassificationTask:
    """Return the digits with this learning rate of Adam."""
    return digits_task(recipe=replace(RECIPE, learning_rate=rate), note=f"rate-{rate:g}")


def of_weight_decay(decay: float) -> ClassificationTask:
    """Return the digits with this weight decay of SGD."""
    return digits_task(recipe=replace(DECAYING, weight_decay=decay), note=f"decay-{decay:g}")


@dataclass(frozen=True)
class Sweep:
    """One quantity of the recipe, and the values that it takes."""

    label: str
    values: tuple[float, ...]
    task: Callable[[float], ClassificationTask]


SWEEPS: Mapping[str, Sweep] = {
    "width": Sweep("width of the hidden layers", (32, 64, 128, 256, 512), of_width),
    "learning-rate": Sweep(f"learning rate (Adam, width {WIDTH})", (3e-4, 1e-3, 3e-3, 1e-2), of_learning_rate),
    "weight-decay": Sweep(f"weight decay (SGD, width {WIDTH})", (0.0, 5e-4, 1e-3, 2e-3, 5e-3), of_weight_decay),
}


def sweep_pairs(task: ClassificationTask, pairs: int, points: int, cache: Path = CACHE) -> list[Pair]:
    """Return the figures of so many pairs of networks of a task."""
    states = {seed: trained(task, seed, cache=cache) for seed in range(pairs + 1)}
    return [measure(task, states, seeds, points=points)[0] for seeds in neighbours(pairs)]


def draw_sweeps(measured: Mapping[str, Mapping[float, Sequence[Pair]]], path: Path) -> None:
    """Draw the alignment and the barrier against every quantity, lines through the medians and a dot a pair.

    Args:
        measured: name of a sweep -> value -> its pairs.
        path: of the picture.
    """
    write_picture(path, lambda: _figure(measured))


def _figure(measured: Mapping[str, Mapping[float, Sequence[Pair]]]) -> Figure:
    figure = Figure(figsize=(3 * len(measured) + 0.4, 5), layout="constrained")
    rows = figure.subplots(2, len(measured), squeeze=False, sharey="row")
    for column, (name, by_value) in enumerate(measured.items()):
        alignment, barrier = rows[:, column]
        _panel(alignment, by_value, {"as trained": "aligned_before", "matched": "aligned"})
        _panel(barrier, by_value, {"as trained": "naive", "matched": "matched"})
        barrier.set_xlabel(SWEEPS[name].label)
    rows[0, 0].set_title("alignment of singular vectors, $R_{.3}$", loc="left")
    rows[1, 0].set_title("barrier of the test loss (nats)", loc="left")
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panel(axes: Axes, by_value: Mapping[float, Sequence[Pair]], lines: Mapping[str, str]) -> None:
    """Draw figures of the pairs against the values of a sweep, which stand at equal distances."""
    for index, (label, figure) in enumerate(lines.items()):
        colour = COLOURS[index]
        middles = [medians(pairs)[figure] for pairs in by_value.values()]
        axes.plot(middles, color=colour, dashes=DASHES[index], linewidth=1.8, label=label)
        for place, pairs in enumerate(by_value.values()):
            heights = [getattr(pair, figure) for pair in pairs]
            axes.plot([place] * len(pairs), heights, "o", color=colour, alpha=0.45, markersize=3.5, markeredgewidth=0)
    axes.set_xticks(range(len(by_value)), [f"{value:g}" for value in by_value])
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


@click.command()
@click.option("--sweeps", default=",".join(SWEEPS), show_default=True, help="Quantities, with commas between.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of seeds: 0-1, 1-2, 2-3, …")
@click.option("--points", default=25, show_default=True, help="Positions on the way.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(sweeps: str, pairs: int, points: int, output: Path) -> None:
    """Print every pair and the medians of each value; write results/sweeps.json and figures/sweeps.png."""
    torch.set_num_threads(1)
    measured: dict[str, dict[float, list[Pair]]] = {}
    results = {}
    for name in sweeps.split(","):
        sweep = SWEEPS[name]
        tasks = {value: sweep.task(value) for value in sweep.values}
        print(f"\n{name}: {summary(next(iter(tasks.values())))}\n")
        table_head(name, "seeds", "least accuracy", "naive", "matched", "L2 reduction", "R_.3 before", "R_.3 after")
        measured[name], results[name] = {}, []
        for value, task in tasks.items():
            measured[name][value] = found = sweep_pairs(task, pairs, points)
            for pair in found:
                figures = (pair.naive, pair.matched, pair.l2_reduction, pair.aligned_before, pair.aligned)
                table_row(f"{value:g}", "{}, {}".format(*pair.seeds), min(pair.accuracies), *figures)
            middle = medians(found)
            keys = ("least_accuracy", "naive", "matched", "l2_reduction", "aligned_before", "aligned")
            table_row(f"**{value:g}**", "median", *(middle[key] for key in keys))
            results[name].append(
                {
                    "value": value,
                    "recipe": description(task),
                    "medians": middle,
                    "pairs": [asdict(pair) for pair in found],
                }
            )
    write_results(output, "sweeps", points=points, sweeps=results)
    draw_sweeps(measured, output / "figures" / "sweeps.png")


if __name__ == "__main__":
    main()
