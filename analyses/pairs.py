"""What is measured between two networks before and after one is permuted towards the other.

Pairs are of neighbouring seeds, 0–1, 1–2, …; a claim holds for the median of its pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from time import perf_counter

import weightspace as ws
from weightspace.connectivity import Curve

#: Matches the second network to the first.
Matcher = Callable[[ws.PermutationSpec, ws.StateDict, ws.StateDict], ws.Matching]


@dataclass(frozen=True)
class Pair:
    """Two networks, of which the second is permuted.

    Attributes:
        seeds: of the two.
        accuracies: of the two, shares of the test images.
        naive: barrier of the test loss, in nats, between the two as they are.
        matched: the same with the second network permuted.
        l2_reduction: 1 − distance after / distance before.
        aligned_before: R_.3, the alignment of the singular vectors, of the two as they are.
        aligned: R_.3 with the second network permuted.
        seconds: of the matching, wall time.
    """

    seeds: tuple[int, int]
    accuracies: tuple[float, float]
    naive: float
    matched: float
    l2_reduction: float
    aligned_before: float
    aligned: float
    seconds: float


def measure(
    task: ws.Task,
    states: Mapping[int, ws.StateDict],
    seeds: tuple[int, int],
    *,
    points: int,
    matcher: Matcher = ws.weight_matching,
) -> tuple[Pair, dict[str, Curve]]:
    """Match a pair and return its figures, and its curves before and after.

    Args:
        task: scores the networks, on its test split.
        states: seed -> network.
        seeds: of the target and of the source.
        points: positions on the way.
        matcher: weight matching, if nothing else is said.
    """
    target, source = (states[seed] for seed in seeds)
    spec = ws.derive_spec(task.network(), task.example_args)
    start = perf_counter()
    matching = matcher(spec, target, source)
    seconds = perf_counter() - start
    ends = {"as they are": source, "matched": ws.permute(spec, matching.permutation, source)}
    curves = {label: ws.loss_curve(task, target, end, points) for label, end in ends.items()}
    naive, matched = map(ws.barrier, curves.values())
    before, after = (ws.singular_alignment(target, end, spec=spec).total for end in ends.values())
    accuracies = curves["matched"].accuracy or (float("nan"),)
    pair = Pair(seeds, (accuracies[0], accuracies[-1]), naive, matched, matching.l2_reduction, before, after, seconds)
    return pair, curves


def neighbours(count: int) -> list[tuple[int, int]]:
    """Return pairs of seeds: 0–1, 1–2, …, so that ``count + 1`` networks make ``count`` pairs."""
    return [(first, first + 1) for first in range(count)]


def medians(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the median of every figure over pairs, of the accuracies the least, and of matched / naive."""
    figures = {
        field.name: median(getattr(pair, field.name) for pair in pairs)
        for field in fields(Pair)
        if field.name not in ("seeds", "accuracies")
    }
    return {
        "least_accuracy": min(min(pair.accuracies) for pair in pairs),
        **figures,
        "matched_by_naive": median(pair.matched / pair.naive for pair in pairs),
    }
