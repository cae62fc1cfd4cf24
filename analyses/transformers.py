"""Transformers trained apart: the barrier between them after each kind of alignment, all methods side by side.

Every pair of three networks is aligned by every method, a row of ``METHODS``: permutations by weights or by
activations; all symmetries by weights, by activations, or learned in 250 steps; and least squares after them. The
barrier is that of the test loss; the accuracy is that of the midpoint.

    python analyses/transformers.py                                              # both tasks, three seeds each
    python analyses/transformers.py --tasks vit-fashion --methods none   # a quick look
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, TypeAlias

import click
import torch
from pairs import shares
from recipe import CACHE, BuiltInTask, description, label_of, summary, trained
from report import HERE, Row, medians, save

import weightspace as ws
from weightspace.connectivity import Curve
from weightspace.merging import least_squares
from weightspace.plots import draw_curves
from weightspace.plots.picture import COLOURS, Figure, write_picture

TASKS = ("vit-fashion", "llama-glosses")
#: The first of the seeds that results are kept for; no network of them had a part in the choice of methods.
FIRST_SEED = 31
SEEDS = 3
POINTS = 11


class Aligned(NamedTuple):
    """Two networks in one basin, and their merge if it is not the mean."""

    target: ws.StateDict
    source: ws.StateDict
    merged: ws.StateDict | None = None


#: Takes a task, a target and a source.
Method: TypeAlias = Callable[[BuiltInTask, ws.StateDict, ws.StateDict], Aligned]


def unaligned(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
    """Return the two as they are."""
    return Aligned(a, b)


def permuted(method: str) -> Method:
    """Return a matching method of the library by permutations."""

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        spec = ws.derive_spec(task.network(), task.example_args)
        return Aligned(a, ws.permute(spec, ws.match(spec, a, b, method, task=task).permutation, b))

    return align


def aligned(**options: Any) -> Method:
    """Return an alignment by all symmetries of the architecture, with the options of ``ws.align``."""

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        spec = ws.derive_spec(task.network(), task.example_args, symmetry="full")
        return Aligned(*ws.align(spec, a, b, task=task, **options).apply(a, b))

    return align


def then_least_squares(method: Method) -> Method:
    """Return a method whose merge is fitted by least squares on 1,024 training examples."""

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        target, source, _ = method(task, a, b)
        return Aligned(target, source, least_squares(task, [target, source]))

    return align


#: Name in tables -> method.
METHODS: Mapping[str, Method] = {
    "none": unaligned,
    "weight matching": permuted("weight-matching"),
    "activation matching": permuted("activation-matching"),
    "none, least squares": then_least_squares(unaligned),
    "activation matching, least squares": then_least_squares(permuted("activation-matching")),
    "full, weights": aligned(method="weights"),
    "full, activations": aligned(),
    "full, activations, least squares": then_least_squares(aligned()),
    "full, learned": aligned(method="learned"),
    "full, learned with labels": aligned(method="learned", by_labels=True),
}


def measure(task: BuiltInTask, aligned: Aligned) -> tuple[Row, Curve | None]:
    """Return the barrier in nats and the accuracy halfway, and the curve; None where the merge is not the mean."""
    if aligned.merged is None:
        curve = ws.loss_curve(task, aligned.target, aligned.source, POINTS)
        return {"barrier": ws.barrier(curve), "accuracy": shares(curve)[POINTS // 2]}, curve
    target, source, merged = (scores_of(task, state) for state in aligned)
    return {
        "barrier": merged["loss"] - (target["loss"] + source["loss"]) / 2,
        "accuracy": merged["accuracy"],
    }, None


def scores_of(task: BuiltInTask, state: ws.StateDict | None) -> Mapping[str, float]:
    """Return the test scores of a network."""
    network = task.network()
    network.load_state_dict(state or {})
    return task.score(network, "test")


def rows(
    task: BuiltInTask, methods: Sequence[str], seeds: Sequence[int], cache: Path
) -> Iterator[tuple[str, dict[str, Row], dict[str, Curve]]]:
    """Yield for every pair of networks its label, the figures of every method, and the curves."""
    for pair in combinations(seeds, 2):
        a, b = (trained(task, seed, cache=cache) for seed in pair)
        found: dict[str, Row] = {}
        curves: dict[str, Curve] = {}
        for name in methods:
            start = process_time()
            aligned = METHODS[name](task, a, b)
            seconds = process_time() - start
            row, curve = measure(task, aligned)
            found[name] = {**row, "seconds": seconds}
            if curve is not None:
                curves[name] = curve
        yield label_of(pair), found, curves


def table(found: Mapping[str, Mapping[str, Row]]) -> dict[str, Row]:
    """Print barriers (and accuracies) by method and pair, and return the medians of every method."""
    pairs = list(found)
    print("| method | " + " | ".join(pairs) + " | median | seconds |")
    print("|---" * (len(pairs) + 3) + "|")
    middle = {name: medians(found[pair][name] for pair in pairs) for name in found[pairs[0]]}
    for name, row in middle.items():
        cells = [f"{found[pair][name]['barrier']:.3f} ({found[pair][name]['accuracy']:.2f})" for pair in pairs]
        print(f"| {name} | {' | '.join(cells)} | {row['barrier']:.3f} | {row['seconds']:.0f} |", flush=True)
    return middle


def draw_worth(found: Mapping[str, Mapping[str, Mapping[str, Row]]], path: Path) -> None:
    """Draw every pair's barrier by method, one panel per task."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Mapping[str, Mapping[str, Mapping[str, Row]]]) -> Figure:
    figure = Figure(figsize=(4.2 * len(found) + 1.5, 3.0), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (task, pairs) in zip(panels, found.items(), strict=True):
        names = list(next(iter(pairs.values())))
        middle = {name: medians(by_method[name] for by_method in pairs.values()) for name in names}
        axes.barh(names, [middle[name]["barrier"] for name in names], color=COLOURS[0], alpha=0.35)
        for by_method in pairs.values():
            axes.plot([by_method[name]["barrier"] for name in names], names, "o", color=COLOURS[0], fillstyle="none")
        axes.set_title(task, loc="left")
        axes.set_xlabel("barrier (nats)")
    panels[0].invert_yaxis()
    return figure


@click.command(help=f"\b\n{__doc__}")
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="Built-in tasks, with commas between.")
@click.option("--methods", help="Methods, separated by semicolons; by default all.")
@click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Networks have it and the next.")
@click.option("--seeds", default=SEEDS, show_default=True, help="Number of networks of each task.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(tasks: str, methods: str | None, first_seed: int, seeds: int, cache: Path, output: Path) -> None:
    """Print a table of every pair per task; write results/transformers.json and the figures."""
    torch.set_num_threads(1)
    chosen = list(METHODS) if methods is None else [name.strip() for name in methods.split(";")]
    numbers = range(first_seed, first_seed + seeds)
    results, found = {}, {}
    for name in tasks.split(","):
        task = ws.load_task(name)
        print(f"\n{summary(task)}\n", flush=True)
        parents = {str(seed): dict(scores_of(task, trained(task, seed, cache=cache))) for seed in numbers}
        measured = list(rows(task, chosen, numbers, cache))
        found[name] = {label: row for label, row, _ in measured}
        results[name] = {"recipe": description(task), "parents": parents, "rows": found[name]}
        results[name]["median"] = table(found[name])
        label, _, curves = measured[0]
        draw_curves(curves, output / "figures" / f"transformers_{name}.png", title=f"{name}, seeds {label}")
    draw_worth(found, output / "figures" / "transformers.png")
    save("transformers", {"points": POINTS, "tasks": results}, output)


if __name__ == "__main__":
    main()
