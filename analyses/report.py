"""Shared parts of all scripts: options, a table of every pair with the median, gates, and a file of results.

A script has *rows*: it yields a label and the figures of one pair (or triple, or set) of networks after the other. A
gate is a bound on the **median** of one figure.
"""

from __future__ import annotations

import json
import operator
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import click
import numpy
import scipy
import torch
from recipe import CACHE, FIRST_SEED, description, seed_groups, summary

import weightspace as ws
from weightspace.tasks import ClassificationTask

HERE = Path(__file__).parent
_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "≤": operator.le,
    ">": operator.gt,
    "≥": operator.ge,
}

#: Figure -> value, for one pair of networks.
Row: TypeAlias = Mapping[str, float]
#: Takes the seeds of every pair (triple, set) and the folder of trained networks.
Rows: TypeAlias = Callable[[Sequence[range], Path], Iterator[tuple[str, Row]]]
#: Takes the seeds of one pair (triple, set), the folder of trained networks and that of the pictures.
Draw: TypeAlias = Callable[[range, Path, Path], None]


@dataclass(frozen=True)
class Gate:
    """What the median of a figure must be for a claim to be reproduced."""

    claim: str
    figure: str
    relation: str
    bound: float

    def holds(self, value: float) -> bool:
        """Return whether a median is within the bound."""
        return _RELATIONS[self.relation](value, self.bound)

    def verdict(self, value: float) -> str:
        """Return the gate and how a median stands to it, as a sentence."""
        said = "holds" if self.holds(value) else "DOES NOT HOLD"
        return f"{self.claim}: {self.figure} {self.relation} {self.bound:g}, median {value:.3f}: {said}"


def medians(rows: Iterable[Row]) -> dict[str, float]:
    """Return the median of every figure."""
    listed = list(rows)
    return {figure: median(row[figure] for row in listed) for figure in listed[0]}


def printed(rows: Iterable[tuple[str, Row]], *, middle: bool = True) -> dict[str, Row]:
    """Print a table, each row as soon as it is there and (``middle``) the medians last, and return the rows."""
    kept: dict[str, Row] = {}
    for label, row in rows:
        if not kept:
            print("| | " + " | ".join(row) + " |")
            print("|---" * (len(row) + 1) + "|")
        kept[label] = row
        _print_row(label, row)
    if middle:
        _print_row("**median**", medians(kept.values()))
    return kept


def _print_row(label: str, row: Row) -> None:
    print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |", flush=True)


def save(name: str, content: Mapping[str, Any], output: Path = HERE) -> None:
    """Write ``results/NAME.json``: the content, after the environment that it was found in."""
    path = output / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **content}, indent=1, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """Return what the numbers depend on beside the recipe."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "weightspace": ws.__version__,
        "threads": torch.get_num_threads(),
    }


def first_seed(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--first-seed``: networks have the seeds from this one on."""
    named = click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Networks have it and the next.")
    return named(command)


def script(
    name: str,
    about: str | None,
    *,
    task: ClassificationTask,
    rows: Rows,
    gates: Sequence[Gate],
    draw: Draw | None = None,
    pairs: int = 5,
    size: int = 2,
) -> click.Command:
    """Return the command of a script: print every row, the medians and the gates, write the results, draw.

    Args:
        name: of the file of results, and how the pictures begin.
        about: the help text: the docstring of the script.
        task: whose recipe is stated.
        rows: what is measured.
        gates: bounds on the medians; without any, no medians are taken.
        draw: makes the pictures, of the first pair.
        pairs: number of pairs by default.
        size: seeds in each of them: 2 for pairs, 3 for triples.
    """

    @click.command(help=f"\b\n{about}")
    @click.option(
        "--pairs", default=pairs, show_default=True, help="Pairs (triples, sets) of networks, no network in two."
    )
    @first_seed
    @click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help="Folder of trained networks.")
    @click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/ and figures/.")
    def main(pairs: int, first_seed: int, cache: Path, output: Path) -> None:
        torch.set_num_threads(1)
        groups = seed_groups(pairs, size, first=first_seed)
        print(summary(task), end="\n\n")
        found = printed(rows(groups, cache), middle=bool(gates))
        middle = medians(found.values()) if gates else {}
        print()
        for gate in gates:
            print(gate.verdict(middle[gate.figure]))
        verdicts = [{**asdict(g), "median": middle[g.figure], "holds": g.holds(middle[g.figure])} for g in gates]
        save(name, {"recipe": description(task), "gates": verdicts, "median": middle, "rows": found}, output)
        if draw is not None:
            draw(groups[0], cache, output / "figures")

    return main
