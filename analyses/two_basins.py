"""Two seeds, one basin: the barrier between independently trained networks before and after weight matching.

Git Re-Basin (Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836) states that networks trained from different
seeds lie in one basin once their hidden units are permuted, wide enough networks with almost no barrier left. Here are
the built-in tasks as they come, one with convolutions and BatchNorm among them.

    python analyses/two_basins.py                                   # all tasks, five pairs each
    python analyses/two_basins.py --tasks digits-mlp --pairs 2      # a quick look
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from pairs import pair_rows
from recipe import CACHE, description, label_of, seed_groups, summary, trained
from report import HERE, first_seed, medians, printed, save

import weightspace as ws
from weightspace.plots import draw_curves
from weightspace.tasks import ClassificationTask

TASKS = ("digits-mlp", "digits-cnn", "fashion-mlp")


def draw(task: ClassificationTask, seeds: range, cache: Path, folder: Path) -> None:
    """Draw the loss along the linear path between two networks."""
    a, b = (trained(task, seed, cache=cache) for seed in seeds)
    spec = ws.derive_spec(task.network(), task.example_args)
    ends = {"naive": b, "weight matching": ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)}
    curves = {label: ws.loss_curve(task, a, end) for label, end in ends.items()}
    draw_curves(curves, folder / f"two_basins_{task.name}.png", title=f"{task.name}, seeds {label_of(seeds)}")


@click.command()
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="Built-in tasks, with commas between.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of networks, no network in two of them.")
@first_seed
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(tasks: str, pairs: int, first_seed: int, cache: Path, output: Path) -> None:
    """Print every pair and the medians of each task; write results/two_basins.json and one figure per task."""
    torch.set_num_threads(1)
    results = {}
    groups = seed_groups(pairs, first=first_seed)
    for name in tasks.split(","):
        task = ws.load_task(name)
        print(f"\n{summary(task)}\n")
        rows = printed(pair_rows(task, groups, cache=cache))
        results[name] = {"recipe": description(task), "median": medians(rows.values()), "rows": rows}
        draw(task, groups[0], cache, output / "figures")
    save("two_basins", {"tasks": results}, output)


if __name__ == "__main__":
    main()
