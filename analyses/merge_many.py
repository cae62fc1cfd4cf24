"""MergeMany: the mean of several networks, brought into one basin, against the best of them.

Networks that were trained from different seeds, on the same images, and on disjoint parts of them: then every class has
a home, the part that holds 80 % of its images, and the rest is spread over the other parts.

    python analyses/merge_many.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from recipe import digits_pixels, digits_task, label_of, trained
from report import Gate, Row, script

import weightspace as ws
from weightspace.tasks import ClassificationTask, Examples, Split, network_with

WIDTH = 1024
TASK = digits_task(WIDTH)
#: Networks in a set.
MODELS = 3
#: Share of a class that is in one part.
HOME = 0.8
#: What the networks of a set were trained on: all images, or a part each.
KINDS = ("same", "parts")
GATES = (
    Gate("The merged network beats the best of those of disjoint data", "parts: merged / best", "<", 1.0),
    Gate("… and the best of those of the same data", "same: merged / best", "<", 1.0),
)


def rows(sets: Sequence[range], cache: Path, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, Row]]:
    """Measure sets of networks of these seeds."""
    for seeds in sets:
        row: dict[str, float] = {}
        for kind in kinds:
            tasks = [TASK] * MODELS if kind == "same" else parts_of(seeds[0])
            states = [trained(task, seed, cache=cache) for task, seed in zip(tasks, seeds, strict=True)]
            row |= measure(kind, states)
        yield label_of(seeds), row


def parts_of(seed: int) -> list[ClassificationTask]:
    """Return tasks on disjoint parts of the digits, as many as there are networks in a set."""
    return [digits_task(WIDTH, load=partial(digits_part, one, MODELS, seed)) for one in range(MODELS)]


def measure(kind: str, states: list[ws.StateDict]) -> Row:
    """Merge networks, and return the test scores of the best of them and of what they became."""
    spec = ws.derive_spec(TASK.network(), TASK.example_args)
    merged = ws.merge_many(spec, states).merged
    singles = [score(state) for state in states]
    best, after = min(one["loss"] for one in singles), score(merged)
    return {
        f"{kind}: best loss": best,
        f"{kind}: merged loss": after["loss"],
        f"{kind}: merged / best": after["loss"] / best,
        f"{kind}: best accuracy": max(one["accuracy"] for one in singles),
        f"{kind}: merged accuracy": after["accuracy"],
    }


def score(state: ws.StateDict) -> Mapping[str, float]:
    """Return the scores on all test digits."""
    return TASK.score(network_with(TASK, state), "test")


def digits_part(part: int, parts: int, seed: int) -> Mapping[Split, Examples]:
    """Return the digits with one of several disjoint parts of the training images; the seed draws the homes."""
    splits = digits_pixels()
    inputs, labels = splits["train"]
    generator = torch.Generator().manual_seed(seed)
    home = (torch.randperm(10, generator=generator) % parts)[labels]
    away = torch.randint(1, parts, labels.shape, generator=generator)
    stays = torch.rand(labels.shape, generator=generator) < HOME
    here = torch.where(stays, home, (home + away) % parts) == part
    return {**splits, "train": Examples(inputs[here], labels[here])}


if __name__ == "__main__":
    script("merge_many", __doc__, task=TASK, rows=rows, gates=GATES, size=MODELS)()
