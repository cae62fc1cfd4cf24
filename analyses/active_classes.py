"""Choice of classes to observe: by the growth of the locus, against random choice, on random trees.

From two random classes on, more are added in steps; the locus is counted, and an oracle-like classifier, whose logits
are minus the distances with noise, is scored by the mean squared distance of its Fréchet mean.

    python analyses/active_classes.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from report import HERE, Row, medians, printed, save

import weightspace as ws
from weightspace.labels.calibration import mean_cost

LABELS, ROWS = 300, 500
ADDED = (0, 2, 5, 10, 20, 50)


def rows(trees: int) -> Iterator[tuple[str, Row]]:
    """Yield the median over trees for every number of added classes."""
    for added in ADDED:
        found = []
        for seed in range(trees):
            rng = np.random.default_rng(seed)
            parents = [-1, *(int(rng.integers(0, i)) for i in range(1, LABELS))]
            metric = ws.LabelMetric.from_tree(parents)
            order = rng.permutation(LABELS).tolist()
            start, drawn = order[:2], order[2 : 2 + added]
            truth = rng.integers(0, LABELS, ROWS)
            noise = rng.normal(0, 0.5, (ROWS, LABELS))
            row = {}
            for name, more in (("active", metric.next_classes(start, added)), ("random", drawn)):
                seen = [*start, *more]
                p = torch.softmax(torch.from_numpy(-metric.distances(truth, seen) + noise[:, seen]), -1)
                row[f"locus, {name}"] = float(len(metric.locus(seen)))
                row[f"d², {name}"] = mean_cost(metric, metric.predict(p, observed=seen), truth, 2)
            found.append(row)
        yield f"2 + {added}", medians(found)


@click.command(help=f"\b\n{__doc__}")
@click.option("--trees", default=9, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/.")
def main(trees: int, output: Path) -> None:
    """Print the table and write the results."""
    torch.set_num_threads(1)
    found = printed(rows(trees), middle=False)
    save("active_classes", {"labels": LABELS, "trees": trees, "rows": found}, output)


if __name__ == "__main__":
    main()
