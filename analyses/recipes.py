"""Dependence of the weight-matching claims on the recipe: the same figures for networks trained differently.

One thing at a time is changed. Every row is the median over five pairs.

    python analyses/recipes.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import weight_matching
from recipe import RECIPE, digits_task
from report import Row, medians, script
from torch import Generator, Tensor

from weightspace.tasks import ClassificationTask
from weightspace.tasks.classification import add_noise
from weightspace.zoo.digits import digits_examples

TASK = digits_task()
SHOWN = ("matched / naive", "L2 reduction", "Taylor error", "R_.3", "R_.3 − R_0", "R_.7 − R_.3", "input energy")


def shifted(inputs: Tensor, generator: Generator, *, by: int) -> Tensor:
    """Return images ``(n, 1, h, w)``, each shifted by up to ``by`` pixels along each axis and cropped."""
    height, width = inputs.shape[-2:]
    padded = torch.nn.functional.pad(inputs, (by,) * 4)
    places = torch.randint(0, 2 * by + 1, (len(inputs), 2), generator=generator).tolist()
    moved = (image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True))
    return torch.stack(list(moved))


RECIPES: Mapping[str, ClassificationTask] = {
    "as stated": TASK,
    "25 epochs": replace(TASK, recipe=replace(RECIPE, epochs=25)),
    "no noise": replace(TASK, augment=None),
    "noise .05": replace(TASK, augment=partial(add_noise, std=0.05)),
    "noise .2": replace(TASK, augment=partial(add_noise, std=0.2)),
    "standardised pixels, noise .3": replace(TASK, load=digits_examples, augment=partial(add_noise, std=0.3)),
    "shifts by a pixel, no noise": replace(TASK, augment=partial(shifted, by=1)),
}


def rows(pairs: Sequence[range], cache: Path) -> Iterator[tuple[str, Row]]:
    """Return the medians of every recipe."""
    for label, task in RECIPES.items():
        middle = medians(row for _, row in weight_matching.rows(pairs, cache, task=task))
        yield label, {figure: middle[figure] for figure in SHOWN}


if __name__ == "__main__":
    script("recipes", __doc__, task=TASK, rows=rows, gates=())()
