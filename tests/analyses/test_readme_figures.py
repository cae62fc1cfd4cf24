"""analyses/README.md says what the kept results say: its figures are theirs, and so is what it calls missed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ANALYSES = Path(__file__).parents[2] / "analyses"
#: How a row of the table begins -> the figures that it gives of a script: name in the results, and digits after the
#: point.
FIGURES: dict[tuple[str, str], list[tuple[str, int]]] = {
    ("Weight matching connects", "weight_matching"): [("matched / naive", 3)],
    ("", "fashion"): [("matched / naive", 3)],
    ("… but hardly shortens the distance", "weight_matching"): [("L2 reduction", 2)],
    ("… but hardly shortens the distance", "fashion"): [("L2 reduction", 2)],
    ("Taylor's expansion cannot explain it", "weight_matching"): [("Taylor error", 2)],
    ("The vectors of large singular values align", "weight_matching"): [
        ("R_.3 before", 2),
        ("R_.3", 2),
        ("R_.3 − R_0", 2),
        ("R_.7 − R_.3", 2),
    ],
    ("The vectors of large singular values align", "fashion"): [("R_.3 before", 2), ("R_.3", 2)],
    ("Hidden inputs live on the leading right vectors", "weight_matching"): [("input energy", 1)],
    ("Activation matching resembles weight matching", "activation_matching"): [
        ("R ratio", 2),
        ("activations / naive", 3),
    ],
    ("A data-driven estimator need not align", "straight_through"): [
        ("R Sinkhorn / R weights", 2),
        ("Sinkhorn / naive", 3),
        ("R projected / R weights", 2),
        ("projected / naive", 3),
    ],
    ("Three models", "three_models"): [("weights / Sinkhorn", 2)],
    ("MergeMany: the merged loss beats each model's", "merge_many"): [
        ("same: merged / best", 2),
        ("same: merged accuracy", 3),
        ("same: best accuracy", 3),
        ("parts: merged / best", 2),
        ("parts: merged accuracy", 3),
        ("parts: best accuracy", 3),
    ],
}
#: Words of a row whose gate is missed.
MISSED = re.compile(r"\*\*misses the gate\*\*|\*\*does not reproduce\.\*\*")


def kept(name: str) -> Any:
    return json.loads((ANALYSES / "results" / f"{name}.json").read_text())


def table_row(claim: str) -> str:
    """Return what the first table says of a claim; of none, the row that goes on with the one before."""
    lines = (ANALYSES / "README.md").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"| {claim} |" if claim else "|  |"))


def numbers(text: str) -> set[str]:
    """Return the numbers of a text as they stand there."""
    return set(re.findall(r"(?<![\d.\w])\d*\.\d+(?![\d\w])", text))


@pytest.mark.parametrize(("claim", "name"), FIGURES)
def test_the_figures_of_a_claim_are_those_of_the_kept_results(claim: str, name: str) -> None:
    said, median = numbers(table_row(claim)), kept(name)["median"]
    for figure, digits in FIGURES[claim, name]:
        expected = f"{median[figure]:.{digits}f}".removeprefix("0")
        assert expected in said, f"{figure}: {expected} is not among {sorted(said)}"


@pytest.mark.parametrize(("claim", "name"), FIGURES)
def test_a_row_says_that_its_gate_is_missed_if_and_only_if_it_is(claim: str, name: str) -> None:
    figures = {figure for figure, _ in FIGURES[claim, name]}
    holds = [gate["holds"] for gate in kept(name)["gates"] if gate["figure"] in figures]
    assert holds
    assert bool(MISSED.search(table_row(claim))) == (not all(holds))


@pytest.mark.parametrize("path", sorted((ANALYSES / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_kept_result_has_its_command_in_the_table(path: Path) -> None:
    assert f"{path.stem}.py" in (ANALYSES / "README.md").read_text()
    assert (ANALYSES / f"{path.stem}.py").is_file()
