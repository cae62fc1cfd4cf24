"""Every merge method on three suites: at its defaults, and tuned by eight trials on validation data.

Suites: *characters* (four language models), *images* (eight fine-tunes of a tiny CLIP's image tower), *texts* (five of
the upper layers of MiniLM). Validation chooses, test is shown. The bar is task arithmetic with its λ tuned by the same
eight trials. Networks, statistics, scores and rows are kept: an interrupted run goes on.

    python analyses/scoreboard.py                                 # all, on two cores some 90 minutes
    python analyses/scoreboard.py --suites characters --seeds 1   # a quick look
    python analyses/scoreboard.py --kept                          # the table of what there is
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import click
import merge_settings
import suite_characters
import suite_images
import suite_texts
import torch
from recipe import CACHE, FIRST_SEED
from report import HERE, save
from scoreboard_rows import Row, Scorer
from scoreboard_table import BAR, answers, board_of, draw, orders, table, verdict, write_page
from soups import run_all
from suites import Sizes, Suite

#: The page of the docs that has the results.
PAGE = HERE.parent / "docs" / "pages" / "scoreboard.md"
#: Takes a seed, sizes and the folder of networks.
MakeSuite: TypeAlias = Callable[[int, Sizes, Path], Suite]
#: Name -> maker, sizes, and the sizes of ``--small``.
SUITES: Mapping[str, tuple[MakeSuite, Sizes, Sizes]] = {
    "characters": (suite_characters.suite, suite_characters.FULL, suite_characters.SMALL),
    "images": (suite_images.suite, suite_images.FULL, suite_images.SMALL),
    "texts": (suite_texts.suite, suite_texts.FULL, suite_texts.SMALL),
}


def measure(name: str, seed: int, small: bool, methods: tuple[str, ...], kept_only: bool, cache: Path) -> list[Row]:
    """Return the rows of a suite and a seed, each printed as soon as it is there; ``kept_only``: those that are."""
    if kept_only and not (cache / "rows" / f"{name}-{seed}").is_dir():
        return []
    torch.set_num_threads(1)
    began = perf_counter()
    make, *sizes = SUITES[name]
    suite = make(seed, sizes[small], cache / "networks")
    print(f"{name}, seed {seed}: networks {perf_counter() - began:.0f} s", flush=True)
    found = []
    for row in Scorer(suite, seed, cache, kept_only).rows(methods):
        if "pending" in row:
            continue
        found.append(row)
        print(f"{name}, seed {seed}: {_progress_line(row, suite.joint.objective)}", flush=True)
    return found


def _progress_line(row: Row, objective: str) -> str:
    """Return a row as a line of progress."""
    if "left out" in row:
        return f"{row['label']} is left out: {row['left out']}"
    scores = row["scores"]
    figures = ", ".join(f"{split} {scores[split][objective]:.4f}" for split in ("validation", "test"))
    return f"{row['label']}, {row['settings']}: {figures}, {row['seconds']:.0f} s"


def report(rows: Iterable[Row], small: bool, output: Path, page: Path | None) -> None:
    """Print the table and the answers, and write the results, the picture and, unless it is None, the page."""
    kept = list(rows)
    board = board_of(kept)
    if not board.blocks or BAR not in board.rows or len(board.complete("default")) < 2:
        print("no suite is complete")
        return
    said = [verdict(board.ranks(settings), settings) for settings in ("default", "tuned")]
    said += [*answers(board), *orders(board)]
    print("\n", *table(board), "", *said, sep="\n")
    print(*(f"left out: {label}: {reason}" for label, reason in board.left_out.items()), sep="\n")
    content: dict[str, Any] = {
        "sizes": {name: asdict(sizes[small]) for name, (_, *sizes) in SUITES.items()},
        "trials": merge_settings.TRIALS,
        "defaults": merge_settings.DEFAULTS,
        "spaces": merge_settings.SPACES,
        "evidence examples": merge_settings.EVIDENCE_EXAMPLES,
        "learned": merge_settings.LEARNED,
        "answers": said,
        "table": table(board),
        "left out": board.left_out,
        "rows": [{key: value for key, value in row.items() if key != "trials"} for row in kept],
    }
    save("scoreboard", content, output)
    draw(board, output / "figures" / "scoreboard.png")
    if page is not None:
        write_page(page, board, said)


@click.command(help=f"\b\n{__doc__}")
@click.option("--suites", default=",".join(SUITES), show_default=True, help="Suites, with commas between.")
@click.option("--methods", default="", help="Labels of methods, with semicolons between; default: all.")
@click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Seeds are it and the next.")
@click.option("--seeds", default=3, show_default=True, help="Number of seeds.")
@click.option("--small", is_flag=True, help="Tiny networks, to see that it runs.")
@click.option("--kept", is_flag=True, help="Only what is known from earlier runs, such as one that is going on.")
@click.option("--workers", default=2, show_default=True, help="Suites and seeds at a time.")
@click.option(
    "--cache", type=click.Path(path_type=Path), default=CACHE / "scoreboard", help="Folder of all that is kept."
)
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
def main(
    suites: str,
    methods: str,
    first_seed: int,
    seeds: int,
    small: bool,
    kept: bool,
    workers: int,
    cache: Path,
    output: Path,
) -> None:
    """Print the table; write results/scoreboard.json, figures/scoreboard.png and the results in the docs."""
    torch.set_num_threads(1)
    began = perf_counter()
    labels = tuple(one.strip() for one in methods.split(";") if one.strip())
    places = product(range(first_seed, first_seed + seeds), suites.split(","))
    jobs = [(measure, (name, seed, small, labels, kept, cache.absolute())) for seed, name in places]
    found = run_all(jobs, workers)
    report([row for rows in found for row in rows], small, output, PAGE if output == HERE and not small else None)
    print(f"\n{perf_counter() - began:.0f} s with {workers} workers")


if __name__ == "__main__":
    main()
