"""Comparison of all matching methods, on pairs of networks of every built-in task.

The methods are the rows of ``weightspace.matching.MATCHINGS`` that permute, each with its paper, and those of
``MANY_MATCHINGS``, which take several networks and get the two; ``weightspace match --method`` runs them. Each gets its
own default number of steps, and for a pair a process of its own, which is ended when its time is up: then the table
says so instead of the medians.

    python analyses/methods.py                                           # all tasks, five pairs, about an hour
    python analyses/methods.py --tasks digits-cnn --pairs 1              # a quick look
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import click
import torch
from pairs import measure
from recipe import CACHE, description, label_of, seed_groups, summary, trained
from report import HERE, Row, first_seed, medians, save

import weightspace as ws
from weightspace.matching import MANY_MATCHINGS, MATCHINGS, Matching, l2_reduction, match, match_many
from weightspace.plots.picture import COLOURS, Figure, write_picture
from weightspace.tasks import ClassificationTask
from weightspace.zoo.digits import digits_cnn, digits_mlp
from weightspace.zoo.fashion import fashion_mlp

TASKS: Mapping[str, Callable[[], ClassificationTask]] = {
    "digits-mlp": digits_mlp,
    "digits-cnn": digits_cnn,
    "fashion-mlp": fashion_mlp,
}
METHODS = {name: row for name, row in {**MATCHINGS, **MANY_MATCHINGS}.items() if row.symmetry == "permutations"}
POINTS = 11
COLUMNS = ("naive", "matched", "matched / naive", "L2 reduction", "R_.3 before", "R_.3", "seconds")

#: Label of a pair -> its figures; None where a method was not done in time.
Rows: TypeAlias = Mapping[str, Row | None]


def run(method: str, task: str, seeds: Sequence[int], cache: Path = CACHE) -> Row:
    """Match two networks of a built-in task, of these seeds, by a method and return the figures."""
    torch.set_num_threads(1)
    found = TASKS[task]()
    target, source = (trained(found, seed, cache=cache) for seed in seeds)
    matcher = partial(match if method in MATCHINGS else _of_two, method=method, task=found)
    return measure(found, target, source, points=POINTS, matcher=matcher)


def _of_two(
    spec: ws.PermutationSpec, target: ws.StateDict, source: ws.StateDict, method: str, *, task: ws.Task
) -> Matching:
    """Match two networks by a method for several."""
    found = match_many(spec, [target, source], method, task=task)
    permutation = found.between(0, 1)
    shorter = l2_reduction(spec, target, source, ws.permute(spec, permutation, source))
    return Matching(permutation, found.objective, shorter, converged=True)


def within(limit: float, method: str, task: str, seeds: Sequence[int], cache: Path) -> Row | None:
    """Return what ``run`` does, from a process of its own; None if that takes more seconds than the limit.

    Raises:
        WeightspaceError: the process ended without a result.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, method, task, seeds, cache))
    process.start()
    theirs.close()
    in_time = ours.poll(limit)
    if not in_time:
        process.kill()
    try:
        return ours.recv() if in_time else None
    except EOFError:
        raise ws.WeightspaceError(f"{method} on {task} ended without a result; what it said is above.") from None
    finally:
        process.join()


def _send(connection: Connection, method: str, task: str, seeds: Sequence[int], cache: Path) -> None:
    connection.send(run(method, task, seeds, cache))


def middle(rows: Rows) -> Row | None:
    """Return the medians over the pairs; None if a pair was not done in time."""
    done = [row for row in rows.values() if row is not None]
    return medians(done) if len(done) == len(rows) else None


def draw_methods(found: Mapping[str, Mapping[str, Rows]], path: Path) -> None:
    """Draw the remaining barrier against the alignment that each method reaches, medians, one panel per task."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Mapping[str, Mapping[str, Rows]]) -> Figure:
    figure = Figure(figsize=(3 * len(found) + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (task, by_method) in zip(panels, found.items(), strict=True):
        for index, (method, rows) in enumerate(by_method.items()):
            if (row := middle(rows)) is not None:
                marker, colour = "osD^v<>P"[index % 8], COLOURS[index % len(COLOURS)]
                axes.plot(
                    row["R_.3"], row["matched / naive"], marker, color=colour, fillstyle="none", mew=1.6, label=method
                )
        axes.set_title(task, loc="left")
        axes.set_xlabel("alignment after, $R_{0.3}$")
        axes.grid()
        axes.set_axisbelow(True)
    panels[0].set_ylabel("barrier after / before")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@click.command()
@click.option("--tasks", default=",".join(TASKS), show_default=True, help="Built-in tasks, with commas between.")
@click.option("--methods", default=",".join(METHODS), help="Methods, with commas between; default: all.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of networks, no network in two.")
@first_seed
@click.option("--limit", default=300.0, show_default=True, help="Seconds for a method on a pair, scoring and all.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(tasks: str, methods: str, pairs: int, first_seed: int, limit: float, cache: Path, output: Path) -> None:
    """Print one table of medians per task; write every pair to results/methods.json, and figures/methods.png."""
    groups = seed_groups(pairs, first=first_seed)
    found: dict[str, dict[str, Rows]] = {}
    recipes = {}
    for name in tasks.split(","):
        task = TASKS[name]()
        recipes[name] = description(task)
        for seed in (seed for seeds in groups for seed in seeds):
            trained(task, seed, cache=cache)
        print(f"\n{summary(task)}; medians of {pairs} pairs, seeds from {first_seed}\n")
        print(f"| {name} | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 1)}|", flush=True)
        found[name] = {}
        for method in methods.split(","):
            rows = {label_of(seeds): within(limit, method, name, seeds, cache) for seeds in groups}
            found[name][method] = rows
            row = middle(rows)
            cells = [f"{row[column]:.3f}" for column in COLUMNS] if row else [f"not within {limit:g} s"]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)
    sources = {method: METHODS[method].source for method in methods.split(",")}
    median = {name: {method: middle(rows) for method, rows in table.items()} for name, table in found.items()}
    said = {"points": POINTS, "sources": sources, "recipes": recipes, "median": median, "rows": found}
    save("methods", said, output)
    draw_methods(found, output / "figures" / "methods.png")


if __name__ == "__main__":
    main()
