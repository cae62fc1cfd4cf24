"""Activation statistics along the linear path: unchanged, BatchNorm's recomputed, and REPAIR.

Jordan et al. (https://arxiv.org/abs/2211.08403) state that averaged units lose their variance, and report 60 to 100 %
less barrier once it is set right. Here: ResNet-20 of three widths on Fashion-MNIST, matched by their weights.

    python analyses/repair.py                                # all pairs of four networks per width, an hour
    python analyses/repair.py --widths 0.25 --networks 2     # one pair of the narrowest, some two minutes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import torch
from pairs import shares
from recipe import CACHE, description, label_of, summary, trained
from report import HERE, Gate, Row, first_seed, medians, printed, save
from resnet20 import resnet20

import weightspace as ws
from weightspace.connectivity import Curve, Statistics
from weightspace.plots import draw_curves
from weightspace.plots.picture import COLOURS, DASHES, Axes, Figure, FuncFormatter, write_picture
from weightspace.tasks import ClassificationTask, Examples, Split, TrainConfig
from weightspace.zoo.fashion import fashion_examples, fashion_folder

TRAINED_ON, MEASURED_ON, TESTED_ON = 12_000, 3_000, 3_000
#: Images that networks are trained on, that statistics are measured on, and that losses are.
COUNTS = {"trained_on": TRAINED_ON, "measured_on": MEASURED_ON, "tested_on": TESTED_ON}
RECIPE = TrainConfig(epochs=4, learning_rate=3e-3, cooldown=True)
POINTS = 7
#: What ``loss_curve`` does about statistics between the ends -> how it is called here.
TREATMENTS: Mapping[Statistics, str] = {"none": "matched", "reset": "matched, reset", "repair": "matched, REPAIR"}
GATE = Gate("REPAIR lowers the barrier", "REPAIR removes", ">", 0.0)

#: Label of a pair -> its figures, of each width.
Measured = Mapping[float, Mapping[str, Row]]


def images(training: int, test: int) -> Mapping[Split, Examples]:
    """Return Fashion-MNIST with that many of its training and test images."""
    counts: dict[Split, int] = {"train": training, "validation": test, "test": test}
    splits = fashion_examples(fashion_folder())
    return {split: Examples(*(part[:count] for part in splits[split])) for split, count in counts.items()}


def resnet_task(width: float) -> ClassificationTask:
    """Return the task that networks are trained for: ResNet-20, its channels times ``width``."""
    return ClassificationTask(
        name=f"fashion-resnet20-x{width:g}",
        build=partial(resnet20, width),
        load=partial(images, TRAINED_ON, TESTED_ON),
        batch_size=64,
        recipe=RECIPE,
    )


def measuring(task: ClassificationTask) -> ClassificationTask:
    """Return the same task with fewer training images: those that statistics are measured on."""
    return replace(task, load=partial(images, MEASURED_ON, TESTED_ON))


def curves_by_method(task: ws.Task, target: ws.StateDict, source: ws.StateDict) -> dict[str, Curve]:
    """Return the loss curves to the source as it is, and to the matched source by treatment of the statistics."""
    spec = ws.derive_spec(task.network(), task.example_args)
    permuted = ws.permute(spec, ws.weight_matching(spec, target, source).permutation, source)
    curves = {"unmatched": ws.loss_curve(task, target, source, POINTS, statistics="none")}
    for statistics, label in TREATMENTS.items():
        curves[label] = ws.loss_curve(task, target, permuted, POINTS, statistics=statistics)
    return curves


def figures(curves: Mapping[str, Curve]) -> Row:
    """Return the barriers of the loss (nats) and of the accuracy (fraction), and the endpoints' accuracy."""
    loss = {label: ws.barrier(curve) for label, curve in curves.items()}
    accuracy = {f"{label}, accuracy": ws.barrier(curve, score="accuracy") for label, curve in curves.items()}
    ends = shares(curves["matched"])
    return {
        "accuracy": min(ends[0], ends[-1]),
        **loss,
        "REPAIR removes": loss["matched"] - loss["matched, REPAIR"],
        **accuracy,
    }


def rows(width: float, seeds: Sequence[int], cache: Path, folder: Path) -> Iterator[tuple[str, Row]]:
    """Measure all pairs of networks of a width and of these seeds, and draw the first."""
    task = resnet_task(width)
    for number, pair in enumerate(combinations(seeds, 2)):
        target, source = (trained(task, seed, cache=cache) for seed in pair)
        curves = curves_by_method(measuring(task), target, source)
        if not number:
            draw_curves(curves, folder / f"repair_x{width:g}.png", title=f"{task.name}, seeds {label_of(pair)}")
        yield label_of(pair), figures(curves)


def draw_widths(found: Measured, path: Path) -> None:
    """Draw the medians of both barriers of the matched networks against the width, one line per treatment."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Measured) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _panel(loss, found, "")
    _panel(accuracy, found, ", accuracy")
    loss.set_title("barrier of the test loss (nats)", loc="left")
    accuracy.set_title("barrier of the test accuracy", loc="left")
    accuracy.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Axes, found: Measured, suffix: str) -> None:
    """Draw the barriers of one score against the width."""
    middle = [medians(rows.values()) for rows in found.values()]
    for index, label in enumerate(TREATMENTS.values()):
        heights = [row[label + suffix] for row in middle]
        axes.plot(heights, "o", color=COLOURS[index], markersize=4)
        axes.plot(heights, color=COLOURS[index], dashes=DASHES[index], linewidth=1.8, label=label)
    axes.set_xticks(range(len(found)), [f"×{width:g}" for width in found])
    axes.set_xlabel("width of ResNet-20")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(axis="y")
    axes.set_axisbelow(True)


@click.command()
@click.option("--widths", default="0.25,0.5,1", show_default=True, help="Widths, with commas between.")
@click.option("--networks", default=4, show_default=True, help="Networks of a width; all pairs are measured.")
@first_seed
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(widths: str, networks: int, first_seed: int, cache: Path, output: Path) -> None:
    """Print the barriers of every width; write results/repair.json, one figure per width and one of all.

    Results of widths that are not run are kept.
    """
    torch.set_num_threads(1)
    kept = {width["width"]: width for width in kept_widths(output)}
    seeds = range(first_seed, first_seed + networks)
    for width in map(float, widths.split(",")):
        task = resnet_task(width)
        print(f"\n{summary(task)}; trained on {TRAINED_ON:,} images, statistics measured on {MEASURED_ON:,}\n")
        found = printed(rows(width, seeds, cache, output / "figures"))
        middle = medians(found.values())
        print(f"\n{GATE.verdict(middle[GATE.figure])}", flush=True)
        verdict = {**asdict(GATE), "median": middle[GATE.figure], "holds": GATE.holds(middle[GATE.figure])}
        said = {"width": width, "images": COUNTS, "recipe": description(task)}
        kept[width] = {**said, "gates": [verdict], "median": middle, "rows": found}
    results = [kept[width] for width in sorted(kept)]
    save("repair", {"points": POINTS, "widths": results}, output)
    draw_widths({width["width"]: width["rows"] for width in results}, output / "figures" / "repair.png")


def kept_widths(output: Path) -> list[dict[str, Any]]:
    """Return the results of every width in the file."""
    path = output / "results" / "repair.json"
    return json.loads(path.read_text())["widths"] if path.exists() else []


if __name__ == "__main__":
    main()
