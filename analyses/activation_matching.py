"""Activation matching resembles weight matching: it aligns the singular vectors of large values too.

Networks from two seeds are matched by the correlation of their activations on the training images, and by their
weights.

    python analyses/activation_matching.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pairs import measure
from recipe import digits_task, label_of, trained
from report import Gate, Row, script

import weightspace as ws
from weightspace.matching import match_activations
from weightspace.tasks import network_with

TASK = digits_task()
GATES = (Gate("Activation matching resembles weight matching", "R ratio", ">", 0.7),)


def rows(pairs: Sequence[range], cache: Path) -> Iterator[tuple[str, Row]]:
    """Measure pairs of networks of these seeds."""
    for seeds in pairs:
        a, b = (trained(TASK, seed, cache=cache) for seed in seeds)
        weights, activations = (measure(TASK, a, b, matcher=one) for one in (ws.weight_matching, by_activations))
        yield (
            label_of(seeds),
            {
                "naive": weights["naive"],
                "weights / naive": weights["matched / naive"],
                "activations / naive": activations["matched / naive"],
                "L2 reduction weights": weights["L2 reduction"],
                "L2 reduction activations": activations["L2 reduction"],
                "R_.3 weights": weights["R_.3"],
                "R_.3 activations": activations["R_.3"],
                "R ratio": activations["R_.3"] / weights["R_.3"],
            },
        )


def by_activations(spec: ws.PermutationSpec, target: ws.StateDict, source: ws.StateDict) -> ws.Matching:
    """Match by the correlation of the activations on the training images."""
    networks = (network_with(TASK, state) for state in (target, source))
    return match_activations(spec, *networks, TASK.batches("train", seed=0))


if __name__ == "__main__":
    script("activation_matching", __doc__, task=TASK, rows=rows, gates=GATES)()
