"""Label decisions that were slow: ratios of processor time in one run, on one thread.

    python benchmarks/label_ratios.py [--cases few-labels,tiny-trees,temperature,distances,covers] [--repeats 5]

Ours and what it is compared with take turns; the least of the repeats counts, so that what else the machine does adds
nothing. ImageNet's classes come from timm, WordNet from Debian.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import scipy
import torch
from scipy.sparse.csgraph import dijkstra

import weightspace as ws
from weightspace.labels import fit_temperature

HERE = Path(__file__).parent

#: What was measured, seconds of ours, what it is compared with, its seconds.
Row = tuple[str, float, str, float]


def least(repeats: int, *calls: Callable[[], Any]) -> list[float]:
    """Return the least processor time of every call; they take turns."""
    found = [float("inf")] * len(calls)
    for _ in range(repeats):
        for index, call in enumerate(calls):
            start = time.process_time()
            call()
            found[index] = min(found[index], time.process_time() - start)
    return found


def probabilities(rows: int, columns: int, dtype: Any = np.float32) -> np.ndarray:
    """Return peaked rows that sum to one."""
    logits = 3 * np.random.default_rng(1).standard_normal((rows, columns), dtype=np.float32)
    return torch.softmax(torch.from_numpy(logits), -1).numpy().astype(dtype)


def imagenet() -> tuple[ws.LabelMetric, list[str]]:
    """Return ImageNet's 1,000 classes with all that is above them in WordNet, and the classes."""
    from timm.data import ImageNetInfo

    ids = [str(name) for name in ImageNetInfo("imagenet-1k").label_names()]
    return ws.LabelMetric.from_wordnet(ids, ancestors=True), ids


def against_dense(
    what: str, metric: ws.LabelMetric, observed: list[Any], rows: int, repeats: int, dtype: Any = np.float32
) -> Row:
    """Compare ``predict`` with the dense product and numpy's argmin, in the dtype of the probabilities."""
    p = probabilities(rows, len(observed), dtype)
    squares = np.ascontiguousarray(metric.distances(observed).astype(dtype) ** 2)
    metric.predict(p[:64], observed=observed)
    ours, dense = least(repeats, lambda: metric.predict(p, observed=observed), lambda: (p @ squares).argmin(1))
    return f"{what}, {np.dtype(dtype).name}", ours, "`(P @ D).argmin(1)`", dense


def few_labels(repeats: int) -> Iterator[Row]:
    """Yield a few labels of a large graph."""
    metric, ids = imagenet()
    start = time.process_time()
    metric.decision(observed=ids)
    table = time.process_time() - start
    row = against_dense(
        f"`predict`, {len(metric):,} labels around ImageNet's 1,000 in WordNet, 512 rows", metric, ids, 512, repeats
    )
    yield row
    yield f"the table of the distances of those {len(metric):,} labels, once", table, "the same product", row[3]


def tiny_trees(repeats: int) -> Iterator[Row]:
    """Yield small trees and many rows."""
    five = ws.LabelMetric.from_tree([-1, 0, 0, 1, 1])
    cifar = ws.LabelMetric.from_tree([-1, *[0] * 20, *(1 + i // 5 for i in range(100))])
    for dtype in (np.float32, np.float64):
        yield against_dense(
            "`predict`, tree of 5 nodes, 1,000,000 rows", five, list(range(5)), 1_000_000, repeats, dtype
        )
        leaves = list(range(21, 121))
        yield against_dense("`predict`, CIFAR-100's tree, 50,000 rows", cifar, leaves, 50_000, repeats, dtype)


def temperature(repeats: int) -> Iterator[Row]:
    """Yield fits of a temperature on 50,000 rows of 1,000 classes; one run each."""
    tree = ws.LabelMetric.from_tree(
        [-1, *[0] * 10, *(1 + i // 10 for i in range(100)), *(11 + i // 10 for i in range(1000))]
    )
    metric, ids = imagenet()
    for what, space, observed in (
        ("tree of 1,111 labels", tree, list(range(111, 1111))),
        (f"{len(metric):,} labels around ImageNet's", metric, ids),
    ):
        rng = np.random.default_rng(2)
        true = rng.integers(0, 1000, 50_000)
        logits = 2 * rng.standard_normal((50_000, 1000), dtype=np.float32)
        logits[np.arange(50_000), true] += 4
        squares = space.distances(observed).astype(np.float32) ** 2
        rows = torch.from_numpy(logits)
        chosen = {"metric": space, "observed": observed}
        truth = [observed[i] for i in true]
        fit, product = least(
            1,
            lambda: fit_temperature(rows, truth, **chosen),  # noqa: B023
            lambda: [(torch.softmax(part, -1).numpy() @ squares).argmin(1) for part in rows.split(1024)],  # noqa: B023
        )
        yield (
            f"`fit_temperature`, 50,000 rows × 1,000 classes, {what}",
            fit,
            "42 × softmax and dense product",
            42 * product,
        )


def distances(repeats: int) -> Iterator[Row]:
    """Yield distances from some labels to all."""
    rng = np.random.default_rng(0)
    for what, metric, count in (
        ("a chain of 20,000", ws.LabelMetric.from_tree([-1, *range(19_999)]), 100),
        (
            "a random tree of 20,000",
            ws.LabelMetric.from_tree([-1, *(int(rng.integers(0, i)) for i in range(1, 20_000))]),
            100,
        ),
        ("WordNet", ws.LabelMetric.from_wordnet(), 100),
    ):
        geometry: Any = metric.geometry
        sources = np.sort(rng.choice(len(metric), count, replace=False))
        geometry.distances(sources)
        ours, theirs = least(
            repeats,
            lambda: geometry.distances(sources),  # noqa: B023
            lambda: dijkstra(geometry.graph, directed=False, indices=sources),  # noqa: B023
        )
        yield f"distances from {count} labels, {what}", ours, "scipy's `dijkstra`", theirs


def covers(repeats: int) -> Iterator[Row]:
    """Yield smallest covers, beside making the metric."""
    import warnings

    warnings.simplefilter("ignore", UserWarning)  # that WordNet's cover may not be the smallest
    for what, build in (
        ("a star of 1,000,000", lambda: ws.LabelMetric.from_tree(np.zeros(1_000_000, dtype=int).tolist())),
        ("WordNet", ws.LabelMetric.from_wordnet),
    ):
        metric = build()
        cover, made = least(repeats, metric.minimum_cover, build)
        yield f"`minimum_cover`, {what}", cover, "making the metric", made


CASES: dict[str, Callable[[int], Iterator[Row]]] = {
    "few-labels": few_labels,
    "tiny-trees": tiny_trees,
    "temperature": temperature,
    "distances": distances,
    "covers": covers,
}


@click.command()
@click.option("--cases", default=",".join(CASES), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=HERE / "results" / "label_ratios.json", show_default=True
)
def main(cases: str, repeats: int, out: Path) -> None:
    """Print the table and write the JSON."""
    torch.set_num_threads(1)
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    found: dict[str, Any] = {"rows": json.loads(out.read_text())["rows"] if out.exists() else {}}
    found["environment"] = {
        "cpu": models[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    click.echo("| what | ours s | beside | s | ours / beside |\n|---|---|---|---|---|")
    for case in cases.split(","):
        for what, ours, beside, theirs in CASES[case](repeats):
            found["rows"][what] = {"ours": ours, "beside": beside, "theirs": theirs, "ratio": ours / theirs}
            click.echo(f"| {what} | {ours:.3g} | {beside} | {theirs:.3g} | {ours / theirs:.2g} |")
            out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
