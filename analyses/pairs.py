"""Measurements between two networks of different seeds, before and after one is permuted towards the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import process_time

from recipe import CACHE, label_of, trained
from report import Row

import weightspace as ws
from weightspace.connectivity import Curve
from weightspace.tasks import ClassificationTask

#: Matches a source, given last, to a target.
Matcher = Callable[[ws.PermutationSpec, ws.StateDict, ws.StateDict], ws.Matching]


def pair_rows(
    task: ClassificationTask, pairs: Sequence[range], *, points: int = 25, cache: Path = CACHE
) -> Iterator[tuple[str, Row]]:
    """Yield the figures of pairs of networks of a task, by their seeds, after weight matching."""
    for seeds in pairs:
        target, source = (trained(task, seed, cache=cache) for seed in seeds)
        yield label_of(seeds), measure(task, target, source, points=points)


def measure(
    task: ClassificationTask,
    target: ws.StateDict,
    source: ws.StateDict,
    *,
    points: int = 25,
    matcher: Matcher = ws.weight_matching,
) -> Row:
    """Match two networks and return their figures.

    Args:
        task: scores the networks, on its test split.
        target: stays as it is.
        source: is permuted.
        points: positions along the linear path.
        matcher: weight matching by default.

    Returns:
        The lesser accuracy of the two; barriers in nats of the source as it is and permuted; 1 − distance after /
        distance before; R_.3, the alignment of the singular vectors, before and after; the matching's seconds of
        processor time, which does not depend on what else runs.
    """
    spec = ws.derive_spec(task.network(), task.example_args)
    start = process_time()
    matching = matcher(spec, target, source)
    seconds = process_time() - start
    permuted = ws.permute(spec, matching.permutation, source)
    before, after = (ws.loss_curve(task, target, end, points) for end in (source, permuted))
    naive, matched = ws.barrier(before), ws.barrier(after)
    return {
        "accuracy": min(shares(before)[0], shares(before)[-1]),
        "naive": naive,
        "matched": matched,
        "matched / naive": matched / naive,
        "L2 reduction": matching.l2_reduction,
        "R_.3 before": ws.singular_alignment(target, source, spec=spec).total,
        "R_.3": ws.singular_alignment(target, permuted, spec=spec).total,
        "seconds": seconds,
    }


def shares(curve: Curve) -> tuple[float, ...]:
    """Return the accuracies of a classifier's curve.

    Raises:
        WeightspaceError: it has none.
    """
    if curve.accuracy is None:
        raise ws.WeightspaceError(f"The curve of {curve.task!r} has no accuracies; expected that of a classifier.")
    return curve.accuracy
