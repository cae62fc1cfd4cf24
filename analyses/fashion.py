"""Weight matching connects wide networks on Fashion-MNIST, and hardly shortens the distance between them.

Ainsworth et al. (https://arxiv.org/abs/2209.04836) state the first, Ito, Yamada and Kumagai
(https://arxiv.org/abs/2402.04051) the second, and what happens instead: the singular vectors of large singular values
come to lie along each other.

    python analyses/fashion.py              # five pairs, in some four minutes
    python analyses/fashion.py --pairs 2    # a quick look
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import torch
from pairs import measure, medians, neighbours
from recipe import CACHE, description, summary, trained
from report import HERE, table_head, table_row, write_results

import weightspace as ws
from weightspace.plots import draw_alignment
from weightspace.spectra import alignments, spectrum
from weightspace.tasks import ClassificationTask
from weightspace.tasks.fashion import fashion_mlp

GAMMAS = tuple(step / 10 for step in range(10))


def draw_vectors(task: ClassificationTask, target: ws.StateDict, source: ws.StateDict, path: Path) -> None:
    """Draw the alignment of the singular vectors against γ, before and after weight matching.

    Args:
        task: of the networks.
        target: stays.
        source: is permuted.
        path: of the picture.
    """
    spec = ws.derive_spec(task.network(), task.example_args)
    matching = ws.weight_matching(spec, target, source)
    ends = {"as trained": source, "matched": ws.permute(spec, matching.permutation, source)}
    base = spectrum(target, spec=spec)
    curves = {label: alignments(base, spectrum(end, spec=spec), GAMMAS) for label, end in ends.items()}
    draw_alignment(curves, path, title=f"{task.name}: two seeds")


@click.command()
@click.option("--pairs", default=5, show_default=True, help="Pairs of seeds: 0-1, 1-2, 2-3, …")
@click.option("--points", default=11, show_default=True, help="Positions on the way.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(pairs: int, points: int, output: Path) -> None:
    """Print every pair and the medians; write results/fashion.json and figures/fashion_alignment.png."""
    torch.set_num_threads(1)
    task = fashion_mlp()
    print(f"{summary(task)}\n")
    states = {seed: trained(task, seed, cache=CACHE) for seed in range(pairs + 1)}
    table_head("seeds", "least accuracy", "naive", "matched", "matched / naive", "L2 reduction", "R_.3 before", "after")
    found = []
    for seeds in neighbours(pairs):
        pair, _ = measure(task, states, seeds, points=points)
        found.append(pair)
        figures = (pair.naive, pair.matched, pair.matched / pair.naive, pair.l2_reduction)
        table_row("{}, {}".format(*seeds), min(pair.accuracies), *figures, pair.aligned_before, pair.aligned)
    middle = medians(found)
    keys = ("naive", "matched", "matched_by_naive", "l2_reduction", "aligned_before", "aligned")
    table_row("median", middle["least_accuracy"], *(middle[key] for key in keys))
    write_results(
        output,
        "fashion",
        recipe=description(task),
        points=points,
        medians=middle,
        pairs=[asdict(pair) for pair in found],
    )
    draw_vectors(task, states[0], states[1], output / "figures" / "fashion_alignment.png")


if __name__ == "__main__":
    main()
