"""Every method of matching beside the others, on a pair of networks of every built-in task.

The methods are the rows of ``weightspace.matching.MATCHINGS``, each with its paper; ``weightspace match --method`` runs
them. Each gets its own default number of steps, and a process of its own, which is ended when its time is up.

    python analyses/methods.py                                           # all tasks
    python analyses/methods.py --tasks digits-mlp --limit 60             # a quick look
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch
from pairs import measure
from recipe import CACHE, description, summary, trained
from report import HERE, Row, save

import weightspace as ws
from weightspace.matching import MATCHINGS, run_matching
from weightspace.plots.picture import COLOURS, Figure, write_picture
from weightspace.tasks import ClassificationTask
from weightspace.tasks.digits import digits_cnn, digits_mlp
from weightspace.tasks.fashion import fashion_mlp

TASKS: Mapping[str, Callable[[], ClassificationTask]] = {
    "digits-mlp": digits_mlp,
    "digits-cnn": digits_cnn,
    "fashion-mlp": fashion_mlp,
}
SEEDS, POINTS = (0, 1), 11
COLUMNS = ("naive", "matched", "matched / naive", "L2 reduction", "R_.3 before", "R_.3", "seconds")


def run(method: str, task: str, cache: Path = CACHE) -> Row:
    """Match two networks of a built-in task by a method and return what it brought."""
    torch.set_num_threads(1)
    found = TASKS[task]()
    target, source = (trained(found, seed, cache=cache) for seed in SEEDS)
    matcher = partial(run_matching, method, task=found)
    return measure(found, target, source, points=POINTS, matcher=matcher)


def within(limit: float, method: str, task: str, cache: Path) -> Row | None:
    """Return what ``run`` does, from a process of its own; None if that takes more seconds than the limit.

    Raises:
        WeightspaceError: the process ended without a result.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, method, task, cache))
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


def _send(connection: Connection, method: str, task: str, cache: Path) -> None:
    connection.send(run(method, task, cache))


def draw_methods(found: Mapping[str, Mapping[str, Row | None]], path: Path) -> None:
    """Draw what is left of the barrier against the alignment that each method reaches, a panel a task."""
    write_picture(path, lambda: _figure(found))


def _figure(found: Mapping[str, Mapping[str, Row | None]]) -> Figure:
    figure = Figure(figsize=(3 * len(found) + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (task, by_method) in zip(panels, found.items(), strict=True):
        for index, (method, row) in enumerate(by_method.items()):
            if row is not None:
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
@click.option("--methods", default=",".join(MATCHINGS), help="Methods, with commas between; default: all.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds for a method on a task, scoring and all.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(tasks: str, methods: str, limit: float, cache: Path, output: Path) -> None:
    """Print a table a task; write results/methods.json and figures/methods.png."""
    found: dict[str, dict[str, Row | None]] = {}
    recipes = {}
    for name in tasks.split(","):
        task = TASKS[name]()
        recipes[name] = description(task)
        for seed in SEEDS:
            trained(task, seed, cache=cache)
        print(f"\n{summary(task)}; seeds {SEEDS[0]} and {SEEDS[1]}\n")
        print(f"| {name} | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 1)}|", flush=True)
        found[name] = {}
        for method in methods.split(","):
            found[name][method] = row = within(limit, method, name, cache)
            cells = [f"{row[column]:.3f}" for column in COLUMNS] if row else [f"not within {limit:g} s"]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)
    sources = {method: MATCHINGS[method].source for method in methods.split(",")}
    save("methods", {"seeds": SEEDS, "points": POINTS, "sources": sources, "recipes": recipes, "rows": found}, output)
    draw_methods(found, output / "figures" / "methods.png")


if __name__ == "__main__":
    main()
