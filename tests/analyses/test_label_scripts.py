"""The analyses of label metrics: each whole and small by its own command, and what their kept results must show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from weightspace.labels.wordnet import DEBIAN_FOLDER as WORDNET
from weightspace.zoo.fashion import DEBIAN_FOLDER as FASHION

RESULTS = Path(__file__).parents[2] / "analyses" / "results"

#: Script -> options that make it small, and the rows that it then has.
SMALL = {
    "tree_gain": (["--trees", "1"], ["K = 5", "K = 10", "K = 30", "K = 100", "K = 300"]),
    "active_classes": (["--trees", "1"], ["2 + 0", "2 + 2", "2 + 5", "2 + 10", "2 + 20", "2 + 50"]),
    "clip_labels": (["--steps", "2"], None),
    "imagenet_metric": ([], ["K = 100", "K = 250", "K = 500", "K = 750"]),
    "wordnet_labels": (["--observed", "50", "--test", "40"], ["K = 50, frequent", "K = 50, random"]),
}
#: Script -> the folder of data that it needs.
DATA = {"clip_labels": FASHION, "imagenet_metric": WORDNET, "wordnet_labels": WORDNET}


def needs_data(name: str) -> pytest.MarkDecorator:
    missing = name in DATA and not DATA[name].exists() and os.environ.get("WEIGHTSPACE_CI") != "1"
    return pytest.mark.skipif(missing, reason=f"{DATA.get(name)} is missing")


def kept(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_data(name)) for name in SMALL])
def test_a_script_runs_from_end_to_end(script: Callable[[str], ModuleType], name: str, tmp_path: Path) -> None:
    options, rows = SMALL[name]
    ran = CliRunner().invoke(script(name).main, [*options, "--output", str(tmp_path)], catch_exceptions=False)
    assert ran.exit_code == 0
    found = json.loads((tmp_path / "results" / f"{name}.json").read_text())["rows"]
    assert rows is None or list(found) == rows
    assert {tuple(row) for row in found.values()} == {tuple(row) for row in kept(name).values()}


def test_every_script_keeps_the_results_of_all_its_rows() -> None:
    for name in ("tree_gain", "active_classes", "imagenet_metric"):
        assert list(kept(name)) == SMALL[name][1]
    assert list(kept("wordnet_labels")) == [
        f"K = {k}, {way}" for way in ("frequent", "random") for k in (100, 500, 2000)
    ]


def test_the_kept_glosses_of_frequent_classes_are_as_good_as_was_aimed_at() -> None:
    rows = kept("wordnet_labels")
    for count, argmax, frechet in ((100, 78.4, 48.6), (500, 66.3, 36.2), (2000, 61.1, 30.1)):
        row = rows[f"K = {count}, frequent"]
        assert (row["argmax"] <= argmax, row["Fréchet"] <= frechet) == (True, True)
    for row in rows.values():
        assert row["Fréchet"] < row["argmax"]


def test_the_kept_metric_by_position_is_worse_than_argmax_and_says_it_is_better() -> None:
    for row in kept("imagenet_metric").values():
        assert row["Fréchet, by name"] < row["argmax"] < row["Fréchet, by position"]
        assert row["misaligned says: Fréchet"] < row["misaligned says: argmax"]


def test_in_the_kept_trees_probabilities_that_are_too_flat_lose_to_argmax() -> None:
    rows = kept("tree_gain")
    assert rows["K = 5"]["T = 1"] > 0 > rows["K = 300"]["T = 1"]
    assert all(row["T = 0.1"] >= 0 for row in rows.values())


def test_in_the_kept_trees_chosen_classes_reach_more_than_random_ones() -> None:
    for added, row in kept("active_classes").items():
        assert row["locus, active"] > row["locus, random"] or added == "2 + 0"
