"""A straight-through estimator connects two networks without aligning them.

The estimator on scores (Sinkhorn) knows the loss halfway and nothing of the weights. It brings the barrier down with
half the alignment of singular vectors that weight matching brings, or less. The estimator on weights begins at weight
matching, and keeps what that has aligned.

    python analyses/straight_through.py
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipe import digits_task, label_of, trained
from report import Gate, Row, script

import weightspace as ws

#: Half as wide, an estimator that brings the barrier below a tenth has aligned half of what weight matching aligns.
WIDTH = 256
TASK = digits_task(WIDTH)
METHODS = ("weights", "Sinkhorn", "projected")
GATES = (
    Gate("A data-driven estimator need not align", "R Sinkhorn / R weights", "<", 0.5),
    Gate("… though it connects", "Sinkhorn / naive", "<", 0.1),
)


def rows(triples: Sequence[range], cache: Path) -> Iterator[tuple[str, Row]]:
    """Measure the first two networks of every triple of seeds: three_models matches them as well, and all three."""
    for target, source, _ in triples:
        yield label_of((target, source)), measure(target, source, cache)


def measure(target: int, source: int, cache: Path) -> Row:
    """Return the figures of one pair, the source matched to the target by three methods."""
    a, b = (trained(TASK, seed, cache=cache) for seed in (target, source))
    ends = {method: matched(method, target, source, cache) for method in METHODS}
    naive = barrier(a, b)
    aligned = {method: ws.singular_alignment(a, end, 0.3).total for method, end in ends.items()}
    return {
        "naive": naive,
        **{f"{method} / naive": barrier(a, end) / naive for method, end in ends.items()},
        **{f"R_.3 {method}": found for method, found in aligned.items()},
        "R Sinkhorn / R weights": aligned["Sinkhorn"] / aligned["weights"],
        "R projected / R weights": aligned["projected"] / aligned["weights"],
    }


def barrier(a: ws.StateDict, b: ws.StateDict) -> float:
    """Return the barrier of the test loss along the linear path between two networks, in nats."""
    return ws.barrier(ws.loss_curve(TASK, a, b))


@functools.cache
def matched(method: str, target: int, source: int, cache: Path) -> ws.StateDict:
    """Return the network of one seed with its units matched to those of another's; found once a process."""
    spec = ws.derive_spec(TASK.network(), TASK.example_args)
    a, b = (trained(TASK, seed, cache=cache) for seed in (target, source))
    if method == "weights":
        matching = ws.weight_matching(spec, a, b)
    else:
        projection = "sinkhorn" if method == "Sinkhorn" else "weight-matching"
        matching = ws.straight_through(spec, a, b, task=TASK, projection=projection)
    return ws.permute(spec, matching.permutation, b)


if __name__ == "__main__":
    script("straight_through", __doc__, task=TASK, rows=rows, gates=GATES, size=3)()
