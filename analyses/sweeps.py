"""Effect of width, learning rate and weight decay on the barrier and on the alignment of singular vectors.

Ito, Yamada and Kumagai (https://arxiv.org/abs/2402.04051) explain by the singular vectors of large singular values why
weight matching connects networks. Which recipes make these vectors align more, and does the barrier follow?

    python analyses/sweeps.py                                    # all three, five pairs each, some three minutes
    python analyses/sweeps.py --sweeps weight-decay --pairs 2    # a quick look
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from pairs import pair_rows
from recipe import CACHE, RECIPE, WIDTH, description, digits_task, seed_groups, summary
from report import HERE, Gate, Row, first_seed, medians, printed, save

from weightspace.plots.picture import COLOURS, DASHES, Axes, Figure, write_picture
from weightspace.tasks import ClassificationTask, TrainConfig

#: Of the sweep over weight decay: steps that are large, for long enough that the decay acts, and small in the end.
DECAYING = TrainConfig(epochs=60, learning_rate=0.15, cooldown=True, optimizer="sgd")
#: R_.3 without and with the largest weight decay, as it was found before; our medians may be off by the tolerance.
EXPECTED, TOLERANCE = {0.0: 0.44, 5e-3: 0.79}, 0.1
GATES = tuple(
    Gate("Weight decay aligns the singular vectors", f"|R_.3 at {decay:g} − {expected:g}|", "≤", TOLERANCE)
    for decay, expected in EXPECTED.items()
)

#: Title of a row of panels -> label of a line -> figure of the pairs.
PANELS: Mapping[str, Mapping[str, str]] = {
    "alignment of singular vectors, $R_{0.3}$": {"unmatched": "R_.3 before", "matched": "R_.3"},
    "barrier of the test loss (nats)": {"unmatched": "naive", "matched": "matched"},
    "barrier, matched / unmatched": {"matched": "matched / naive"},
}

#: Label of a pair -> its figures, of each value of a sweep.
Measured = Mapping[float, Mapping[str, Row]]


@dataclass(frozen=True)
class Sweep:
    """One quantity of the recipe, and the values that it takes."""

    label: str
    values: tuple[float, ...]
    task: Callable[[float], ClassificationTask]


def of_width(width: float) -> ClassificationTask:
    """Return the digits with hidden layers of this width."""
    return digits_task(int(width))


def of_learning_rate(rate: float) -> ClassificationTask:
    """Return the digits with this learning rate of Adam."""
    return digits_task(recipe=replace(RECIPE, learning_rate=rate), note=f"rate-{rate:g}")


def of_weight_decay(decay: float) -> ClassificationTask:
    """Return the digits with this weight decay of SGD."""
    return digits_task(recipe=replace(DECAYING, weight_decay=decay), note=f"decay-{decay:g}")


SWEEPS: Mapping[str, Sweep] = {
    "width": Sweep("width (Adam)", (32, 64, 128, 256, 512), of_width),
    "learning-rate": Sweep(f"learning rate (Adam, width {WIDTH})", (3e-4, 1e-3, 3e-3, 1e-2), of_learning_rate),
    "weight-decay": Sweep(f"weight decay (SGD, width {WIDTH})", (0.0, 5e-4, 1e-3, 2e-3, 5e-3), of_weight_decay),
}


def swept(name: str, pairs: Sequence[range], cache: Path = CACHE) -> Measured:
    """Measure pairs of networks at every value of a sweep, print them, and the medians at the end."""
    sweep, found = SWEEPS[name], {}
    for value in sweep.values:
        task = sweep.task(value)
        print(f"\n{summary(task)}\n")
        found[value] = printed(pair_rows(task, pairs, cache=cache))
    print(f"\nMedians by {sweep.label}\n")
    for index, (value, rows) in enumerate(found.items()):
        middle = medians(rows.values())
        if not index:
            print(f"| {name} | {' | '.join(middle)} |\n{'|---' * (len(middle) + 1)}|")
        print(f"| {value:g} | {' | '.join(f'{figure:.3f}' for figure in middle.values())} |", flush=True)
    return found


def verdicts(found: Measured) -> list[dict[str, object]]:
    """Compare the sweep over weight decay with the expectations; print and return the verdicts."""
    listed = []
    for gate, (decay, expected) in zip(GATES, EXPECTED.items(), strict=True):
        off = abs(medians(found[decay].values())["R_.3"] - expected)
        print(f"\n{gate.verdict(off)}")
        listed.append({**asdict(gate), "median": off, "holds": gate.holds(off)})
    return listed


def draw_sweeps(measured: Mapping[str, Measured], path: Path) -> None:
    """Draw the alignment and the barrier against every quantity: lines through the medians and one dot per pair."""
    write_picture(path, lambda: _figure(measured))


def _figure(measured: Mapping[str, Measured]) -> Figure:
    figure = Figure(figsize=(3 * len(measured) + 0.4, 6.4), layout="constrained")
    rows = figure.subplots(len(PANELS), len(measured), squeeze=False, sharey="row")
    for column, (name, found) in zip(rows.T, measured.items(), strict=True):
        for axes, lines in zip(column, PANELS.values(), strict=True):
            _panel(axes, found, lines)
        column[-1].set_xlabel(SWEEPS[name].label)
    for axes, title in zip(rows[:, 0], PANELS, strict=True):
        axes.set_title(title, loc="left")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panel(axes: Axes, found: Measured, lines: Mapping[str, str]) -> None:
    """Draw figures of the pairs against the values of a sweep, which stand at equal distances."""
    for label, figure in lines.items():
        index = int(label == "matched")
        style = {"color": COLOURS[index], "dashes": DASHES[index]}
        axes.plot([medians(rows.values())[figure] for rows in found.values()], linewidth=1.8, label=label, **style)
        for place, rows in enumerate(found.values()):
            heights = [row[figure] for row in rows.values()]
            axes.plot([place] * len(rows), heights, "o", color=COLOURS[index], alpha=0.45, markersize=3.5, mew=0)
    axes.set_xticks(range(len(found)), [f"{value:g}" for value in found])
    axes.grid(axis="y")
    axes.set_axisbelow(True)


@click.command()
@click.option("--sweeps", default=",".join(SWEEPS), show_default=True, help="Quantities, with commas between.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of networks, no network in two of them.")
@first_seed
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(sweeps: str, pairs: int, first_seed: int, cache: Path, output: Path) -> None:
    """Print every pair and the medians of each value; write results/sweeps.json and figures/sweeps.png."""
    torch.set_num_threads(1)
    measured = {name: swept(name, seed_groups(pairs, first=first_seed), cache) for name in sweeps.split(",")}
    gates = verdicts(measured["weight-decay"]) if "weight-decay" in measured else []
    results = {
        name: [
            {
                "value": value,
                "recipe": description(SWEEPS[name].task(value)),
                "median": medians(rows.values()),
                "rows": rows,
            }
            for value, rows in found.items()
        ]
        for name, found in measured.items()
    }
    save("sweeps", {"gates": gates, "sweeps": results}, output)
    draw_sweeps(measured, output / "figures" / "sweeps.png")


if __name__ == "__main__":
    main()
