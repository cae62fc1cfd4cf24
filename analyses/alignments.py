"""Alignments of transformers, and their figures on all pairs of a few trained networks: shared by several scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import Any, Literal, NamedTuple, TypeAlias

import click
import torch
from pairs import shares
from recipe import CACHE, BuiltInTask, description, label_of, summary, trained
from report import HERE, Row, medians, save
from transformer_tasks import task_of

import weightspace as ws
from weightspace.connectivity import Curve
from weightspace.merging import least_squares
from weightspace.plots.picture import COLOURS, Figure, write_picture

#: The first of the seeds that results are kept for; no network of them had a part in the choice of methods.
FIRST_SEED = 31
SEEDS = 3
POINTS = 11
#: Positions from which on a path is drawn.
LEAST_DRAWN = 5


class Aligned(NamedTuple):
    """Two networks in one basin, and their merge if it is not the mean."""

    target: ws.StateDict
    source: ws.StateDict
    merged: ws.StateDict | None = None


#: Takes a task, a target and a source.
Method: TypeAlias = Callable[[BuiltInTask, ws.StateDict, ws.StateDict], Aligned]
#: Pair -> method -> figures.
Table: TypeAlias = Mapping[str, Mapping[str, Row]]


def unaligned(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
    """Return the two as they are."""
    return Aligned(a, b)


def permuted(method: str) -> Method:
    """Return a matching method of the library by permutations."""

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        spec = spec_of(task.name)
        return Aligned(*ws.match(spec, a, b, method, task=task).apply(a, b))

    return align


def aligned(restrict: Callable[[str], ws.SymmetrySpec] | None = None, **options: Any) -> Method:
    """Return an alignment by symmetries of the architecture, with the options of ``ws.align``.

    Args:
        restrict: takes the name of a task, and returns the symmetries; by default all.
        options: of ``ws.align``.
    """

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        spec = (restrict or symmetries_of)(task.name)
        return Aligned(*ws.align(spec, a, b, task=task, **options).apply(a, b))

    return align


def remembered(method: Method) -> Method:
    """Return a method that remembers its last result, for others that continue from it."""
    last: list[tuple[ws.StateDict, ws.StateDict, Aligned]] = []

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        if not last or last[0][0] is not a or last[0][1] is not b:
            last[:] = [(a, b, method(task, a, b))]
        return last[0][2]

    return align


def then_least_squares(method: Method) -> Method:
    """Return a method whose merge is fitted by least squares on 1,024 training examples."""

    def align(task: BuiltInTask, a: ws.StateDict, b: ws.StateDict) -> Aligned:
        target, source, _ = method(task, a, b)
        return Aligned(target, source, least_squares(task, [target, source]))

    return align


@lru_cache(maxsize=2)
def spec_of(name: str) -> ws.PermutationSpec:
    """Return the permutations of a task's network, derived once."""
    task = task_of(name)
    return ws.derive_spec(task.network(), task.example_args)


@lru_cache(maxsize=4)
def symmetries_of(name: str, symmetry: Literal["signed", "full"] = "full") -> ws.SymmetrySpec:
    """Return the symmetries of a task's network, derived once."""
    task = task_of(name)
    return ws.derive_spec(task.network(), task.example_args, symmetry=symmetry)


def measure(task: BuiltInTask, aligned: Aligned, points: int = POINTS) -> tuple[Row, Curve | None]:
    """Return the barrier in nats and the accuracy halfway, and the curve; None where the merge is not the mean."""
    if aligned.merged is None:
        curve = ws.loss_curve(task, aligned.target, aligned.source, points)
        return {"barrier": ws.barrier(curve), "accuracy": shares(curve)[points // 2]}, curve
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
    task: BuiltInTask, methods: Mapping[str, Method], seeds: Sequence[int], cache: Path, points: int = POINTS
) -> Iterator[tuple[str, dict[str, Row], dict[str, Curve]]]:
    """Yield for every pair of networks its label, the figures of every method, and the curves.

    Seconds are processor time; those of methods that continue from a remembered result do not include its own.
    """
    for pair in combinations(seeds, 2):
        a, b = (trained(task, seed, cache=cache) for seed in pair)
        found: dict[str, Row] = {}
        curves: dict[str, Curve] = {}
        for name, method in methods.items():
            start = process_time()
            aligned = method(task, a, b)
            seconds = process_time() - start
            row, curve = measure(task, aligned, points)
            found[name] = {**row, "seconds": seconds}
            if curve is not None:
                curves[name] = curve
        yield label_of(pair), found, curves


def table(found: Table) -> dict[str, Row]:
    """Print barriers (and accuracies) by method and pair, and return the medians of every method."""
    pairs = list(found)
    print("| method | " + " | ".join(pairs) + " | median | accuracy | seconds |")
    print("|---" * (len(pairs) + 4) + "|")
    middle = middles(found)
    for name, row in middle.items():
        cells = " | ".join(f"{found[pair][name]['barrier']:.3f}" for pair in pairs)
        figures = f"{row['barrier']:.3f} | {row['accuracy']:.3f} | {row['seconds']:.0f}"
        print(f"| {name} | {cells} | {figures} |", flush=True)
    return middle


def middles(found: Table) -> dict[str, Row]:
    """Return the medians over all pairs of every method."""
    return {name: medians(by_method[name] for by_method in found.values()) for name in next(iter(found.values()))}


def draw_bars(found: Mapping[str, Table], path: Path) -> None:
    """Draw every pair's barrier by method, one panel per task."""
    write_picture(path, lambda: _bars(found))


def _bars(found: Mapping[str, Table]) -> Figure:
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    bars = max(len(middles(pairs)) for pairs in found.values())
    figure = Figure(figsize=(5.4 * columns, (0.2 * bars + 0.8) * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes, (task, pairs) in zip(grid.flat, found.items(), strict=False):
        middle = middles(pairs)
        names = list(middle)
        axes.barh(names, [middle[name]["barrier"] for name in names], color=COLOURS[0], alpha=0.35)
        for by_method in pairs.values():
            axes.plot([by_method[name]["barrier"] for name in names], names, "o", color=COLOURS[0], fillstyle="none")
        axes.set_title(task, loc="left")
        axes.set_xlim(left=0)
        axes.invert_yaxis()
    for column in range(columns):
        last = [axes for axes in grid[:, column] if axes.get_visible()][-1]
        last.set_xlabel("barrier of the test loss (nats)")
    return figure


def alignment_script(
    name: str,
    about: str | None,
    *,
    methods: Mapping[str, Method],
    tasks: Sequence[str],
    draw: Callable[[Mapping[str, Table], Path], None] = draw_bars,
    draw_pair: Callable[[str, str, Mapping[str, Curve], Path], None] | None = None,
    points: int = POINTS,
) -> click.Command:
    """Return the command of a script that measures alignments on all pairs of three networks of some tasks.

    Args:
        name: of the file of results, and of the picture.
        about: the help text: the docstring of the script.
        methods: name -> alignment.
        tasks: names of the tasks by default.
        draw: makes the picture, of the tables of all tasks.
        draw_pair: makes a picture of the first pair of a task, from its name, the label of the pair and the curves, if
            they have enough points.
        points: positions along the linear path.
    """

    @click.command(help=f"\b\n{about}")
    @click.option("--tasks", default=",".join(tasks), show_default=True, help="Tasks, with commas between.")
    @click.option("--methods", "names", help="Methods, separated by semicolons; by default all.")
    @click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Networks have it and the next.")
    @click.option("--seeds", default=SEEDS, show_default=True, help="Number of networks of each task.")
    @click.option("--points", default=points, show_default=True, help="Positions along the linear path, at least 3.")
    @click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
    @click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
    def main(
        tasks: str, names: str | None, first_seed: int, seeds: int, points: int, cache: Path, output: Path
    ) -> None:
        torch.set_num_threads(1)
        chosen = list(methods) if names is None else [one.strip() for one in names.split(";")]
        numbers = range(first_seed, first_seed + seeds)
        results = kept_tasks(output / "results" / f"{name}.json")
        for task_name in tasks.split(","):
            task = task_of(task_name)
            print(f"\n{summary(task)}\n", flush=True)
            parents = {str(seed): dict(scores_of(task, trained(task, seed, cache=cache))) for seed in numbers}
            print(*(f"{seed}: {one['loss']:.3f} ({one['accuracy']:.3f})" for seed, one in parents.items()), sep="  ")
            measured = list(rows(task, {one: methods[one] for one in chosen}, numbers, cache, points))
            found = {label: row for label, row, _ in measured}
            results[task_name] = {"recipe": description(task), "points": points, "parents": parents, "rows": found}
            results[task_name]["median"] = table(found)
            if draw_pair is not None and points >= LEAST_DRAWN:
                label, _, curves = measured[0]
                draw_pair(task_name, label, curves, output / "figures")
            save(name, {"tasks": results}, output)
        draw({task: result["rows"] for task, result in results.items()}, output / "figures" / f"{name}.png")

    return main


def kept_tasks(path: Path) -> dict[str, Any]:
    """Return the results of other tasks in a file, if there is one."""
    return json.loads(path.read_text())["tasks"] if path.is_file() else {}
