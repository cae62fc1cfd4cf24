"""Soups of a CLIP model: the paper's table on the tiny CLIP of ``fashion-clip``, over several splits.

Wortsman et al. 2022 (https://arxiv.org/abs/2203.05482) fine-tune a zero-shot CLIP many times; in distribution they find
the greedy soup above the best model and the uniform soup a little below, under shift both far above. Here 12 fine-tunes
per split: two learning rates, three augmentations, two seeds, four epochs on 10,000 images; 5,000 images choose, 10,000
test, clean and under four shifts. The pretrained model is made first, if it isn't there, on other images.

    python analyses/soups_clip.py                             # three splits, ten minutes on two cores without a cache
    python analyses/soups_clip.py --splits 1 --workers 1      # a quick look
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from time import perf_counter

import click
import torch
from recipe import CACHE, description, summary
from report import HERE, save
from soups import MEASURES, PAPER, Pot, as_data, cook, draw_scatter, fine_tune, print_table, run_all, verdicts

import weightspace as ws
from weightspace.tasks import ClassificationTask, variant
from weightspace.zoo.fashion_clip import fashion_clip
from weightspace.zoo.shifts import SHIFTS

RATES, AUGMENTATIONS, SEEDS = (5e-4, 1.5e-3), ("none", "flip", "jitter"), (0, 1)


def label_of(rate: float, augmentation: str, seed: int) -> str:
    """Return the label of a fine-tune."""
    return f"rate {rate:g}, {augmentation}, seed {seed}"


def fine_tuned(split: int, rate: float, augmentation: str, seed: int, cache: Path) -> ws.StateDict:
    """Return one fine-tune, from the cache or made now."""
    task = variant(fashion_clip(split=split), learning_rate=rate, augmentation=augmentation)
    assert isinstance(task, ClassificationTask)
    return fine_tune(task, seed, cache)


def keep(split: int, rate: float, augmentation: str, seed: int, cache: Path) -> None:
    """Leave one fine-tune in the cache."""
    fine_tuned(split, rate, augmentation, seed, cache)


def pot(split: int, cache: Path) -> Pot:
    """Return the fine-tunes of a split, and their soups and ensemble."""
    task = fashion_clip(split=split)
    grid = product(RATES, AUGMENTATIONS, SEEDS)
    states = {label_of(*point): fine_tuned(split, *point, cache) for point in grid}
    return cook(task, ws.train(task, 0, epochs=0), states)


@click.command(help=f"\b\n{__doc__}")
@click.option("--splits", default=3, show_default=True, help="Ways to split the images.")
@click.option("--workers", default=2, show_default=True, help="Fine-tunes at a time.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(splits: int, workers: int, cache: Path, output: Path) -> None:
    """Print the table; write results/soups_clip.json and figures/soups_clip.png."""
    torch.set_num_threads(1)
    begun = perf_counter()
    task = fashion_clip()
    print(f"{summary(task)}; rates {RATES}, augmentations {AUGMENTATIONS}, seeds {SEEDS}", flush=True)
    blank = task.network()  # made once, before workers ask for it
    print(f"zero-shot classifier: {sum(one.numel() for one in blank.parameters()):,} parameters", flush=True)
    grid = list(product(range(splits), RATES, AUGMENTATIONS, SEEDS))
    run_all([(keep, (*point, cache)) for point in grid], workers)
    print(f"{len(grid)} fine-tunes: {perf_counter() - begun:.0f} s\n", flush=True)
    found = run_all([(pot, (split, cache)) for split in range(splits)], workers)
    pots = {f"split {split}": one for split, one in enumerate(found)}
    print_table(pots, start="zero-shot", measures=(*MEASURES, *SHIFTS))
    print_table(pots, start="zero-shot", measures=MEASURES[1:])
    said = verdicts(pots)
    print("\n".join(said))
    for label, one in pots.items():
        print(f"{label}: the greedy soup has {len(one.greedy)} of {len(one.singles)}: {'; '.join(one.greedy)}")
    seconds = perf_counter() - begun
    print(f"\n{seconds:.0f} s with {workers} workers")
    save(
        "soups_clip",
        {
            "recipe": description(task),
            "paper": PAPER,
            "verdicts": said,
            "workers": workers,
            "seconds": round(seconds),
            "splits": as_data(pots),
        },
        output,
    )
    draw_scatter(pots, output / "figures" / "soups_clip.png", start="zero-shot")


if __name__ == "__main__":
    main()
