"""Two seeds, one basin: the barrier between independently trained networks before and after weight matching.

Git Re-Basin (Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836) states that networks trained from different
seeds lie in one basin once their hidden units are permuted, wide enough networks with almost no barrier left.

    python analyses/two_basins.py                                   # all tasks, five pairs each
    python analyses/two_basins.py --tasks digits-mlp --pairs 2      # a quick look
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import numpy
import torch

import weightspace as ws
from weightspace.connectivity import Curve
from weightspace.plots import draw_curves

HERE = Path(__file__).parent
TASKS = ("digits-mlp", "digits-cnn", "fashion-mlp")


@dataclass(frozen=True)
class Pair:
    """What was measured between two networks; barriers of the test loss in nats, accuracies as shares."""

    task: str
    seeds: tuple[int, int]
    accuracies: tuple[float, float]
    naive_barrier: float
    matched_barrier: float
    naive_midpoint_accuracy: float
    matched_midpoint_accuracy: float
    l2_reduction: float
    matching_seconds: float


def measure(
    task: ws.Task, states: dict[int, ws.StateDict], seeds: tuple[int, int], points: int
) -> tuple[Pair, dict[str, Curve]]:
    """Match the second network to the first and score the way between them, before and after."""
    a, b = (states[seed] for seed in seeds)
    spec = ws.derive_spec(task.network(), task.example_args)
    start = perf_counter()
    matching = ws.weight_matching(spec, a, b)
    seconds = perf_counter() - start
    ends = {"naive": b, "weight matching": ws.permute(spec, matching.permutation, b)}
    curves = {label: ws.loss_curve(task, a, end, points) for label, end in ends.items()}
    naive, matched = curves.values()
    assert naive.accuracy is not None
    assert matched.accuracy is not None
    pair = Pair(
        task=task.name,
        seeds=seeds,
        accuracies=(naive.accuracy[0], naive.accuracy[-1]),
        naive_barrier=ws.barrier(naive),
        matched_barrier=ws.barrier(matched),
        naive_midpoint_accuracy=naive.accuracy[points // 2],
        matched_midpoint_accuracy=matched.accuracy[points // 2],
        l2_reduction=matching.l2_reduction,
        matching_seconds=seconds,
    )
    return pair, curves


@click.command()
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="Tasks, with commas between.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of seeds: 0-1, 1-2, 2-3, …")
@click.option("--points", default=25, show_default=True, help="Positions on the way.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(tasks: str, pairs: int, points: int, output: Path) -> None:
    """Print every pair and the median of each task; write results/two_basins.json and a figure a task."""
    measured: list[Pair] = []
    print("| task | seeds | accuracies | naive | matched | matched / naive | L2 reduction | matching, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in tasks.split(","):
        task = ws.load_task(name)
        states = {seed: ws.train(task, seed) for seed in range(pairs + 1)}
        for first in range(pairs):
            pair, curves = measure(task, states, (first, first + 1), points)
            if not first:
                draw_curves(curves, output / "figures" / f"two_basins_{name}.png", title=f"{name}, seeds 0 and 1")
            measured.append(pair)
            print(
                f"| {name} | {first}, {first + 1} | {pair.accuracies[0]:.3f}, {pair.accuracies[1]:.3f} "
                f"| {pair.naive_barrier:.3f} | {pair.matched_barrier:.3f} "
                f"| {pair.matched_barrier / pair.naive_barrier:.3f} | {pair.l2_reduction:.3f} "
                f"| {pair.matching_seconds:.2f} |",
                flush=True,
            )
        ratio = median(p.matched_barrier / p.naive_barrier for p in measured if p.task == name)
        print(f"| {name} | median | | | | {ratio:.3f} | | |")
    environment = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "weightspace": ws.__version__,
    }
    report = {"environment": environment, "points": points, "pairs": [asdict(pair) for pair in measured]}
    path = output / "results" / "two_basins.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
