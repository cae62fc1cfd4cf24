"""The statistics of the networks between two: nothing done, BatchNorm's measured anew, and REPAIR.

Jordan et al. (https://arxiv.org/abs/2211.08403) state that what is left of the barrier after matching is mostly the
collapse of the units' variance, and that setting it right takes most of that barrier away, in wide networks above all.
Here: ResNet-20 of three widths on Fashion-MNIST, two seeds, matched by their weights.

    python analyses/repair.py                   # in some fifteen minutes
    python analyses/repair.py --widths 0.25     # the narrowest only, in some two
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click
import torch
from recipe import CACHE, description, summary, trained
from report import HERE, table_head, table_row, write_results
from resnet20 import resnet20

import weightspace as ws
from weightspace.connectivity import Curve
from weightspace.plots import draw_curves
from weightspace.plots.picture import COLOURS, DASHES, Figure, FuncFormatter, write_picture
from weightspace.tasks import ClassificationTask, Examples, Recipe, Split
from weightspace.tasks.fashion import fashion_examples, fashion_folder

TRAINED_ON, MEASURED_ON, TESTED_ON = 12_000, 3_000, 3_000
RECIPE = Recipe(epochs=4, learning_rate=3e-3, cooldown=True)
#: What is done between the ends -> how it is called.
TREATMENTS = {"none": "nothing", "reset": "BatchNorm reset", "repair": "REPAIR"}


def images(training: int, test: int) -> Mapping[Split, Examples]:
    """Return Fashion-MNIST with so many of its training and of its test images."""
    counts: dict[Split, int] = {"train": training, "validation": test, "test": test}
    splits = fashion_examples(fashion_folder())
    return {split: Examples(*(part[:count] for part in splits[split])) for split, count in counts.items()}


def resnet_task(width: float, recipe: Recipe = RECIPE, training: int = TRAINED_ON) -> ClassificationTask:
    """Return the task that the networks are trained for."""
    return ClassificationTask(
        name=f"fashion-resnet20-x{width:g}",
        build=partial(resnet20, width),
        load=partial(images, training, TESTED_ON),
        batch_size=128,
        recipe=recipe,
    )


def measuring(task: ClassificationTask, count: int = MEASURED_ON) -> ClassificationTask:
    """Return the same task with fewer training images, which statistics are measured on."""
    return replace(task, load=partial(images, count, TESTED_ON))


@dataclass(frozen=True)
class Treated:
    """The way between two networks with one treatment of statistics: barriers, and scores in the middle."""

    matched: bool
    statistics: str
    loss_barrier: float
    accuracy_barrier: float
    middle_loss: float
    middle_accuracy: float


def treated(
    task: ws.Task, target: ws.StateDict, source: ws.StateDict, points: int
) -> tuple[list[Treated], dict[str, Curve]]:
    """Score the way as the networks are, then matched with every treatment.

    Args:
        task: scores the networks; statistics are measured on its training split.
        target: stays.
        source: is permuted by weight matching.
        points: positions on the way, an odd number.
    """
    spec = ws.derive_spec(task.network(), task.example_args)
    permuted = ws.permute(spec, ws.weight_matching(spec, target, source).permutation, source)
    curves = {"as trained, nothing": ws.loss_curve(task, target, source, points, statistics="none")}
    for statistics, label in TREATMENTS.items():
        curves[f"matched, {label}"] = ws.loss_curve(task, target, permuted, points, statistics=statistics)
    rows = [
        Treated(
            matched=label.startswith("matched"),
            statistics=curve.statistics,
            loss_barrier=ws.barrier(curve),
            accuracy_barrier=ws.barrier(curve, score="accuracy"),
            middle_loss=curve.loss[points // 2],
            middle_accuracy=(curve.accuracy or curve.loss)[points // 2],
        )
        for label, curve in curves.items()
    ]
    return rows, curves


def draw_widths(found: Mapping[float, Sequence[Treated]], path: Path) -> None:
    """Draw both barriers of the matched networks against the width, a line a treatment."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Mapping[float, Sequence[Treated]]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    panels = {"loss_barrier": "barrier of the test loss (nats)", "accuracy_barrier": "barrier of the test accuracy"}
    for axes, (score, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for index, (statistics, label) in enumerate(TREATMENTS.items()):
            heights = [
                next(getattr(row, score) for row in rows if row.matched and row.statistics == statistics)
                for rows in found.values()
            ]
            axes.plot(heights, "o-", color=COLOURS[index], dashes=DASHES[index], markersize=4, label=label)
        axes.set_xticks(range(len(found)), [f"×{width:g}" for width in found])
        axes.set_xlabel("width of ResNet-20")
        axes.set_title(title, loc="left")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@click.command()
@click.option("--widths", default="0.25,0.5,1", show_default=True, help="Widths, with commas between.")
@click.option("--points", default=7, show_default=True, help="Positions on the way, an odd number.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(widths: str, points: int, output: Path) -> None:
    """Print every treatment of every width; write results/repair.json and two figures."""
    torch.set_num_threads(1)
    found: dict[float, list[Treated]] = {}
    results = []
    for width in map(float, widths.split(",")):
        task = resnet_task(width)
        print(f"\n{summary(task)}, {TRAINED_ON:,} images; statistics measured on {MEASURED_ON:,}\n", flush=True)
        target, source = (trained(task, seed, cache=CACHE) for seed in (0, 1))
        found[width], curves = treated(measuring(task), target, source, points)
        table_head("width", "way, statistics", "loss barrier", "accuracy barrier", "middle loss", "middle accuracy")
        for label, row in zip(curves, found[width], strict=True):
            table_row(f"{width:g}", label, row.loss_barrier, row.accuracy_barrier, row.middle_loss, row.middle_accuracy)
        ends = next(iter(curves.values()))
        accuracies = [(ends.accuracy or ends.loss)[end] for end in (0, -1)]
        print(f"\naccuracies of the ends: {accuracies[0]:.3f}, {accuracies[1]:.3f}", flush=True)
        results.append(
            {
                "width": width,
                "recipe": description(task),
                "accuracies": accuracies,
                "treatments": [asdict(row) for row in found[width]],
            }
        )
        draw_curves(curves, output / "figures" / "repair_curves.png", title=f"{task.name}: seeds 0 and 1")
    counts = {"trained_on": TRAINED_ON, "measured_on": MEASURED_ON, "tested_on": TESTED_ON}
    write_results(output, "repair", images=counts, points=points, widths=results)
    draw_widths(found, output / "figures" / "repair.png")


if __name__ == "__main__":
    main()
