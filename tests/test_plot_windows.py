"""Axes show most points well: what is far away stands at the edge."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from weightspace.plots import draw_soups
from weightspace.plots.windows import Frame, Window
from weightspace.soups import SoupReport
from weightspace.soups.compare import Row


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.90, 0.91, 0.92, 0.93, 0.1], 0.9, 0.93),
        ([0.90, 0.91, 0.92, 0.93, 5], 0.9, 0.93),
        ([0.1, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 9.0], 0.91, 0.96),
        ([0.90, 0.91, 0.92, 0.93, 0.87], 0.87, 0.93),
        ([1, 2, 4, 8, 16], 1, 16),
        ([0.5, 0.1], 0.1, 0.5),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.1], 0.1, 0.5),
        ([0.9, math.nan, 0.8], 0.8, 0.9),
        ([math.nan], 0, 1),
        ([], 0, 1),
    ],
)
def test_a_window_leaves_out_what_squeezes_the_others(values: list[float], low: float, high: float) -> None:
    assert (Window.of(values).low, Window.of(values).high) == (low, high)


def test_points_beyond_the_window_are_drawn_at_its_edge() -> None:
    frame = Frame.of([(0.9, 0.8), (0.91, 0.81), (0.92, 0.82), (0.93, 0.83), (0.1, 0.82)])
    assert not frame.holds((0.1, 0.82))
    x, y = frame.clipped((0.1, 0.82))
    assert 0.89 < x < 0.9
    assert y == 0.82


def report(uniform: float) -> SoupReport:
    singles = tuple({"accuracy": value} for value in (0.9, 0.91, 0.92, 0.93, 0.94))
    rows = [("best single", 0.94), ("uniform", uniform), ("greedy", 0.945), ("best single on test", 0.94)]
    return SoupReport(
        "toy",
        "accuracy",
        tuple("abcde"),
        {"validation": singles, "test": singles},
        tuple(Row(name, {split: {"accuracy": at} for split in ("validation", "test")}, 1, (4,)) for name, at in rows),
    )


def test_the_picture_of_a_soup_is_not_squeezed_by_one_recipe(tmp_path: Path) -> None:
    draw_soups(report(0.1), tmp_path / "far.svg")
    draw_soups(report(0.93), tmp_path / "near.svg")
    assert "(outside: 10 %, 10 %)" in (tmp_path / "far.svg").read_text()
    assert "outside" not in (tmp_path / "near.svg").read_text()
    assert "10 %" not in (tmp_path / "near.svg").read_text()


def test_recipes_far_below_the_best_single_model_are_known() -> None:
    assert report(0.1).far_below() == {"uniform": (0.1, 0.94)}
    assert report(0.93).far_below() == report(0.895).far_below() == {}
    far = report(math.nan).far_below()
    assert list(far) == ["uniform"]
    loss = replace(report(0.1), mode="min")  # of errors .90 to .94, .1 is the best
    assert loss.far_below() == {}
    assert replace(report(3.0), mode="min").far_below() == {"uniform": (3.0, 0.9)}
