"""Two sources that are matched to one target lie in one basin after weight matching, and not after an estimator.

Weight matching gives all three the same singular vectors, so that the sources are matched to each other as well. The
straight-through estimator on scores (Sinkhorn) connects each source to the target separately.

    python analyses/three_models.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from recipe import label_of, trained
from report import Gate, Row, script
from straight_through import TASK, barrier, matched

import weightspace as ws
from weightspace.plots import draw_planes

METHODS = ("weights", "Sinkhorn")
GATES = (Gate("Sources matched to one target meet after weight matching", "weights / Sinkhorn", "<", 0.5),)


def rows(triples: Sequence[range], cache: Path) -> Iterator[tuple[str, Row]]:
    """Measure a target and two sources of these seeds."""
    for target, *sources in triples:
        yield f"{target} ← {label_of(sources)}", measure(target, sources, cache)


def measure(target: int, sources: Sequence[int], cache: Path) -> Row:
    """Return the barriers of the test loss between two sources, as they came and matched to a target, in nats."""
    first, second = (trained(TASK, seed, cache=cache) for seed in sources)
    weights, sinkhorn = (barrier(*(matched(method, target, seed, cache) for seed in sources)) for method in METHODS)
    return {
        "naive": barrier(first, second),
        "weights": weights,
        "Sinkhorn": sinkhorn,
        "weights / Sinkhorn": weights / sinkhorn,
    }


def draw(seeds: range, cache: Path, folder: Path) -> None:
    """Draw the planes through the target and the two sources of a triple."""
    first, *sources = seeds
    target = trained(TASK, first, cache=cache)
    titles = {"weights": "weight matching", "Sinkhorn": "straight-through, Sinkhorn"}
    names = ("target", "source 1", "source 2")
    planes = {
        titles[method]: ws.loss_plane(
            TASK, target, *(matched(method, first, seed, cache) for seed in sources), names=names
        )
        for method in METHODS
    }
    draw_planes(planes, folder / "three_models_planes.png", title=f"{TASK.name}, seeds {label_of(seeds)}")


if __name__ == "__main__":
    script("three_models", __doc__, task=TASK, rows=rows, gates=GATES, draw=draw, size=3)()
